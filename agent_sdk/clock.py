"""Client's clock. It is never compared with the server's.

Linux's CLOCK_BOOTTIME goes on while the machine is suspended; a plain monotonic clock does not, and
a holder that wakes up must not believe in a lease that ended during its sleep.
"""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

DRIFT = 0.99
"""Share of a lease's rest that a holder believes in: two clocks may run apart by the other part."""

MARGIN_S = 0.05


def local_now() -> float:
    """Return seconds on this machine's clock that never steps and counts a suspend."""
    return time.clock_gettime(_CLOCK)


def trusted_until(sent_at: float, remaining_ms: int) -> float:
    """Return the end of the holder's trust in the lease, on `local_now`'s clock.

    It counts from the request's sending: a slow answer must not make a holder believe longer than
    the broker does.
    """
    return sent_at + remaining_ms / 1000 * DRIFT - MARGIN_S


def sent_at(trusted_until: float, remaining_ms: int) -> float:
    """Return the time of the request whose answer is trusted until then."""
    return trusted_until - remaining_ms / 1000 * DRIFT + MARGIN_S
