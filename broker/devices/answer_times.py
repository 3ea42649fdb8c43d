"""Times that answers of each GPU took: one that was late is waited for longer the next time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOW_S: Final = 2.0
"""Seconds from which on an answer is slow enough for a word to the operator."""

FACTOR: Final = 2.0


class AnswerTimes:
    """Seconds that each call is waited for, by the time that its last answer took.

    Args:
        least_s: of a call that was never answered, or at once.
        most_s: of any.
    """

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s = least_s
        self._most_s = max(least_s, most_s)
        self._took_s: dict[int, float] = {}

    def note(self, of: int, took_s: float | None) -> None:
        """Take the seconds that a call took; None: it has not ended."""
        if took_s is not None:
            self._took_s[of] = took_s

    def seconds(self, of: int) -> float:
        """Return how long the next such call is waited for."""
        return min(self._most_s, max(self._least_s, FACTOR * self._took_s.get(of, 0.0)))

    def is_slow(self, of: int) -> bool:
        """Tell whether its last answer was slow."""
        return self._took_s.get(of, 0.0) >= min(SLOW_S, self._least_s)

    def slowest_s(self, calls: Iterable[int]) -> float:
        """Return the seconds that the slowest of these calls took last; 0.0: none was slow."""
        return max((self._took_s[of] for of in calls if self.is_slow(of)), default=0.0)
