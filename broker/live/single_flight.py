"""Shared answers for simultaneous questions, so that a crowd costs the store one call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Question that is asked once at a time."""

    def __init__(self) -> None:
        self._asked: asyncio.Task[T] | None = None

    async def ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `work`, or of the call in flight; a cancelled call goes on."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(work())
        return await asyncio.shield(self._asked)
