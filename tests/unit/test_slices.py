"""Slices: a long body is made piece by piece, and other tasks run in between."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from broker.live.slices import PIECE, SLICE_S, dumped, listed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROWS = 3000


def spend(seconds: float) -> None:
    """Use the processor for a while."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_long_body_gives_other_tasks_their_turn() -> None:
    """Between two turns of another task the body takes little more than a slice of the loop."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def rows() -> AsyncIterator[str]:
        for number in range(ROWS):
            spend(SLICE_S / 20)
            yield dumped({"number": number, "text": "x" * 60})

    task = asyncio.create_task(other())
    pieces = [piece async for piece in listed('{"rows":[', rows(), lambda: "]}")]
    task.cancel()
    assert turns > ROWS / 40
    assert len(pieces) > 3
    assert max(map(len, pieces)) < PIECE + 200
    assert [row["number"] for row in json.loads(b"".join(pieces))["rows"]] == list(range(ROWS))
