"""The end of a replica's tasks."""

from __future__ import annotations

import asyncio

from broker.app import end


async def test_task_that_swallows_a_cancellation_is_ended() -> None:
    """A task that loses its cancellation, as in Python 3.11's wait_for, ends like the others."""

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
