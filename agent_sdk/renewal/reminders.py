"""Reminders of leases that nothing renews, for holders that forgot `keep`.

The renewing thread logs each once. A lease that nothing refers to any more has none: its token may
have been handed on, and its new holder renews it.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

from agent_sdk.clock import local_now

if TYPE_CHECKING:
    from agent_sdk.leases.lease import HeldLease

log = logging.getLogger(__name__)

PART, LONGEST_S = 1 / 3, 60.0
"""Part of a lease that is left at its reminder, and most seconds of that."""


class Reminders:
    """Times of the reminders. Callers work in single steps of a dict, as in `renewer`."""

    def __init__(self) -> None:
        self._at: dict[weakref.ref[HeldLease], tuple[float, float]] = {}

    def add(self, lease: HeldLease) -> float:
        """Remind of a lease before the end of trust in it, unless it is renewed; return the time.

        The time is infinite for a lease that does not end.
        """
        until, rest_s = lease.trusted_until, lease.trusted_s
        if lease.local or not lease.ttl_ms or not rest_s:
            return float("inf")
        at = until - min(rest_s * PART, LONGEST_S)
        self._at[weakref.ref(lease, self._pop)] = at, until
        return at

    def forget(self, lease: HeldLease) -> None:
        """Remind no more of a lease: it is renewed."""
        self._pop(weakref.ref(lease))

    def _pop(self, reference: weakref.ref[HeldLease]) -> None:
        self._at.pop(reference, None)

    def clear(self) -> None:
        """Remind of none."""
        self._at.clear()

    def first_at(self) -> float | None:
        """Return the time of the first; None: there is none."""
        return min((at for at, _ in list(self._at.values())), default=None)

    def tell(self, now: float) -> None:
        """Log what is due."""
        for reference, (at, until) in list(self._at.items()):
            if at > now:
                continue
            self._pop(reference)
            lease = reference()
            if lease is None or lease.released or lease.lost or lease.trusted_until > until:
                continue
            log.warning(
                "lease %s of %s ends in %.0f s and nothing renews it: client.keep(lease) does, and "
                "so does `with lease:`; lease.release() gives it back",
                lease.token[:8],
                lease.agent,
                until - local_now(),
            )
