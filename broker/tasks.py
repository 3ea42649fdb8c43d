"""End of asyncio's tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

CANCEL_S: Final = 0.5
"""Seconds that a cancelled task has before it is cancelled again."""


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until each has ended.

    Once is not enough: redis-py writes with `asyncio.wait_for`, which in Python 3.11 swallows a
    cancellation that meets the end of the write.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_S)
