"""The end of a replica's tasks."""

from __future__ import annotations

import asyncio

from broker.app import end


async def test_task_that_swallows_a_cancellation_is_ended() -> None:
    """As a task does that Python 3.11's wait_for deprived of it; the others end at once."""

    async def deaf() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(deaf()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(tasks)
    assert all(task.cancelled() for task in tasks)
