"""Early end of a request that waits for a lease: its client is gone, or this broker stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from anyio import Event
    from fastapi import Request

T = TypeVar("T")

HUNG_UP = 499
"""nginx's status for a client that is gone, for log and metrics: no client reads the answer."""

STOPPING = "this broker stops: ask again, here or at another replica"


class HungUpError(Exception):
    """Error of a request without a client."""


async def unless_ended(request: Request, stopping: Event, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it if the client goes or this broker stops first.

    The request's body must have been read: the next message is then the end of the connection.

    Raises:
        HungUpError: the client is gone.
        BrokerUnavailable: this broker stops.
    """
    task = asyncio.ensure_future(work)
    gone, stops = (asyncio.ensure_future(each) for each in (_gone(request), stopping.wait()))
    try:
        await asyncio.wait({task, gone, stops}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():  # it ended in the meantime
            return task.result()
        if gone.done():
            raise HungUpError
        raise error_for("store_unavailable", STOPPING)
    finally:
        for each in (gone, stops, task):
            each.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
