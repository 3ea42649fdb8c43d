"""Rate limit of each address, for a bounded number of addresses."""

from __future__ import annotations

import time
from typing import Final

ADDRESSES: Final = 4096
"""Most addresses that a rate remembers."""


class Rate:
    """Rate for each address: so many at once, then so many a second.

    Args:
        burst: how many at once.
        per_s: how many a second after that.
    """

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left: dict[str, tuple[float, float]] = {}  # the least recent first

    def allows(self, address: str) -> bool:
        """Tell whether one more is within the rate; it counts if it is."""
        now = time.monotonic()
        left, at = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        allowed = left >= 1
        self._left[address] = (left - allowed, now)
        if len(self._left) > ADDRESSES:
            del self._left[next(iter(self._left))]
        return allowed
