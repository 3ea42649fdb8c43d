"""Last answer to a question, for a while: the pages of a list ask the same again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

KEPT_S: Final = 60.0
"""Seconds after which an answer is forgotten."""


class Recent(Generic[T]):
    """Last answer, by its question."""

    def __init__(self) -> None:
        self._held: tuple[Hashable, T] | None = None
        self._end: asyncio.TimerHandle | None = None

    def get(self, question: Hashable) -> T | None:
        """Return the answer to a question, if it was the last one and not long ago."""
        return self._held[1] if self._held and self._held[0] == question else None

    def put(self, question: Hashable, answer: T) -> None:
        """Remember an answer in place of the last one."""
        if self._end is not None:
            self._end.cancel()
        self._held = (question, answer)
        self._end = asyncio.get_running_loop().call_later(KEPT_S, self._forget)

    def _forget(self) -> None:
        self._held = self._end = None
