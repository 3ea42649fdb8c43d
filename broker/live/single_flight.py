"""One answer for all that ask the same at the same time, so that no crowd asks the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """A question that is asked once at a time."""

    def __init__(self) -> None:
        self._asked: asyncio.Task[T] | None = None

    async def ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Give what work gives, be it begun for another call; a cancelled call does not end it."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(work())
        return await asyncio.shield(self._asked)
