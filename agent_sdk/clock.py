"""The client's clock. It never meets the server's: the two are not compared.

Linux's CLOCK_BOOTTIME goes on while the machine is suspended; a plain monotonic clock does not, and
a holder that wakes up must not believe in a lease that ended while it slept.
"""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

DRIFT = 0.99
"""How far two clocks may run apart: the share of what is left that a holder believes in."""

MARGIN_S = 0.05


def local_now() -> float:
    """Return seconds on this machine's clock that never steps and counts a suspend."""
    return time.clock_gettime(_CLOCK)


def trusted_until(sent_at: float, remaining_ms: int) -> float:
    """Return until when, on `local_now`'s clock, the holder may believe in the lease.

    Counted from when the request left: a slow answer must not make a holder believe longer than the
    broker does.
    """
    return sent_at + remaining_ms / 1000 * DRIFT - MARGIN_S
