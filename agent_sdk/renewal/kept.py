"""Leases that are kept, each with the time of its next renewal."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.clock import local_now
from agent_sdk.renewal.abandoned import RETRY_S

if TYPE_CHECKING:
    from agent_sdk.leases.lease import HeldLease

LONGEST_S: Final = 15.0
SHORTEST_S: Final = 0.1
"""Most and least seconds between two renewals of a lease, whatever its ttl.

An operator's revoke ends a lease after 60 s, and its holder must have been told by then.
"""

NEWS_S: Final = 0.5
"""Seconds for which a lease that comes to be kept is renewed no sooner than others.

Longer after its last answer it may have a notice that it was not told of.
"""


@dataclass(slots=True)
class RenewalSchedule:
    """Schedule of the renewals of a lease that is kept.

    Attributes:
        lease: the lease.
        next_at: the time of its next renewal, on `clock.local_now`'s clock.
    """

    lease: HeldLease
    next_at: float = 0.0

    @property
    def due_at(self) -> float:
        """Time to renew it, or to find it lost."""
        return min(self.next_at, self.lease.trusted_until)

    def begin(self) -> None:
        """Renew it in its time, or now if the pool was asked about it too long ago."""
        self.renewed()
        if local_now() - self.lease.told_at > NEWS_S:
            self.next_at = local_now()

    def renewed(self) -> None:
        """Renew it next after a third of a renewal's length, and of its rest at most.

        Or when its notice is over: the pool ends it then, and its waiter has it.
        """
        lease = self.lease
        ttl_s = lease.ttl_ms / 1000 or LONGEST_S * 3
        third = min(ttl_s / 3, LONGEST_S, max(lease.trusted_s / 3, SHORTEST_S))
        rest_s = third * random.uniform(0.85, 1.0)
        if lease.preempt_at is not None:
            rest_s = min(rest_s, max(0.0, lease.preempt_at - time.time()) + RETRY_S)
        self.next_at = local_now() + rest_s

    def failed(self) -> None:
        """Renew it again soon."""
        tenth = self.lease.ttl_ms / 10000 or RETRY_S
        self.next_at = local_now() + min(RETRY_S, tenth) * random.uniform(0.7, 1.0)
