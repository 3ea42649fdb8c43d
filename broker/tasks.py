"""End of asyncio's tasks, and work on threads of their own."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

from agent_sdk.threads import begin, daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

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


async def on_own_thread(work: Callable[[], T], name: str) -> T:
    """Return the result of work that may hang; cancelled, it leaves its thread behind.

    The threads of `asyncio.to_thread` are few and all of this process shares them, so some calls
    that hang would hold up every other, and the exit too.

    Raises:
        RuntimeError: no thread can be had.
        Exception: an error of the work.
    """
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # no cancellation reaches the thread

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:  # noqa: BLE001 - the caller has it
            result.set_exception(error)

    begin(daemon(run, name))
    return await asyncio.wrap_future(result)
