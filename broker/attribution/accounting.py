"""Accounting of a GPU's memory by lease, in the form that the ledger needs.

Free = capacity - Σ max(leased, used by it) - used without a lease. What a lease holds is in the
ledger already, so what is reported is the rest: *unleased*. A sample without the memory of each
process gives none of this; then the ledger reckons with what is used in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.snapshot import LeaseStatus
    from broker.attribution.ownership import Matcher, Owners
    from broker.devices import DeviceSample


class Cooling(NamedTuple):
    """Cooling lease on one GPU.

    Attributes:
        ended_ms: the lease's end, on the pool's clock.
        cooling_used_mb: MiB that its processes still use, of those that it held.
        cooling_unattributed_mb: MiB that it held, if its processes are not known; else 0.
    """

    ended_ms: int
    cooling_used_mb: int
    cooling_unattributed_mb: int


@dataclass(frozen=True, slots=True)
class Account:
    """Memory use of one GPU, in MiB.

    Attributes:
        reported_unleased_mb: used by processes without a lease, by leases beyond what they hold,
            and what no process accounts for.
        unattributed_mb: held by leases whose processes are not known: so much of what is
            unleased may be theirs.
        cooling: token -> what is known of a lease that cools, where it may still use something.
        over_mb: how much more a lease's processes use than it holds, where they do.
    """

    reported_unleased_mb: int
    unattributed_mb: int
    cooling: dict[str, Cooling]
    over_mb: dict[str, int]

    @property
    def cooling_used_mb(self) -> int:
        """MiB still used by processes of cooling leases."""
        return sum(each.cooling_used_mb for each in self.cooling.values())

    @property
    def cooling_unattributed_mb(self) -> int:
        """MiB held by cooling leases with unknown processes."""
        return sum(each.cooling_unattributed_mb for each in self.cooling.values())


@dataclass(slots=True)
class _Group:
    """Leases whose processes cannot be told apart, because one process holds several."""

    tokens: set[str]
    used_mb: int = 0


@dataclass(frozen=True, slots=True)
class Shares:
    """MiB of one device by token of the active and the cooling leases that hold it.

    Attributes:
        ended_ms: the end of each cooling lease; the last first.
        unattributed: leases of both kinds with unknown processes.
        young: leases granted after the sample, which therefore shows no use of theirs.
        unseen: leases of which no process has been seen on a GPU yet.
        whole: the lease of the whole device, whatever share it names; or empty.
    """

    active: dict[str, int] = field(default_factory=dict)
    cooling: dict[str, int] = field(default_factory=dict)
    ended_ms: dict[str, int] = field(default_factory=dict)
    unattributed: frozenset[str] = frozenset()
    young: frozenset[str] = frozenset()
    unseen: frozenset[str] = frozenset()
    whole: str = ""

    @property
    def all(self) -> dict[str, int]:
        """MiB of each lease, active or cooling."""
        return self.active | self.cooling


def shares_on(
    uuid: str, holders: Iterable[LeaseStatus], matcher: Matcher, sampled_ms: int, whole: str
) -> Shares:
    """Return the shares of a device; `whole`: the token of the lease that is alone on it."""
    shares = Shares(
        unattributed=frozenset(x.token for x in holders if x.token not in matcher.claimed),
        young=frozenset(x.token for x in holders if x.granted_at_ms > sampled_ms),
        unseen=frozenset(x.token for x in holders if x.token not in matcher.working),
        whole=whole,
    )
    for lease in sorted(holders, key=lambda lease: -(lease.expires_at_ms or 0)):
        kind = shares.active
        if lease.state == "cooling":
            kind, shares.ended_ms[lease.token] = shares.cooling, lease.expires_at_ms or 0
        kind[lease.token] = dict(lease.devices).get(uuid, 0)
    return shares


def account(device: DeviceSample, owners: Owners, shares: Shares) -> Account | None:
    """Return the account of a device; None: the memory of its processes is not known.

    Where the use of the whole device is not told, its processes tell the least that it may be: one
    without a lease whose memory is not told either may have all of it.
    """
    if device.processes is None:
        return None
    held = shares.all
    groups: list[_Group] = []
    named_mb = reported_unleased_mb = 0
    for process in device.processes:
        if process.memory_mb is None and device.used_mb is not None:
            return None
        tokens = owners.get(process.pid, frozenset()) & held.keys()
        most_mb = 0 if tokens else device.total_mb or 0
        memory_mb = most_mb if process.memory_mb is None else process.memory_mb
        named_mb += memory_mb
        if tokens:
            _join(groups, set(tokens), memory_mb)
        else:
            reported_unleased_mb += memory_mb
    reported_unleased_mb += max(0, (device.used_mb or 0) - named_mb)
    cooling_used: dict[str, int] = {}
    over_mb: dict[str, int] = {}
    for group in groups:
        active_mb = sum(shares.active.get(token, 0) for token in group.tokens)
        cooling_mb = sum(shares.cooling.get(token, 0) for token in group.tokens)
        beyond_mb = group.used_mb - active_mb - cooling_mb
        reported_unleased_mb += max(0, beyond_mb)
        cooling_used |= _spread(group.used_mb - active_mb, group.tokens, shares.cooling)
        if beyond_mb > 0:
            theirs = group.tokens & shares.active.keys() - {shares.whole}
            over_mb |= dict.fromkeys(theirs, beyond_mb)
    unattributed_mb = sum(held[token] for token in shares.unattributed - shares.young)
    cooling = {
        token: Cooling(
            shares.ended_ms[token],
            cooling_used.get(token, 0),
            mb if token in shares.unattributed - shares.young else 0,
        )
        for token, mb in shares.cooling.items()
        if token in cooling_used or token in shares.unattributed
    }
    return Account(reported_unleased_mb, unattributed_mb, cooling, over_mb)


def _spread(used_mb: int, tokens: set[str], cooling: dict[str, int]) -> dict[str, int]:
    """Divide `used_mb` among the cooling leases of a group: token -> MiB that it still uses.

    The one that ended last comes first, because its memory is withheld for longest.
    """
    found: dict[str, int] = {}
    for token, held_mb in cooling.items():
        if token in tokens and used_mb > 0:
            found[token] = min(used_mb, held_mb)
            used_mb -= held_mb
    return found


def _join(groups: list[_Group], tokens: set[str], memory_mb: int) -> None:
    """Merge a process of these leases with every group that shares a lease with it."""
    joined = _Group(tokens, memory_mb)
    for group in [group for group in groups if group.tokens & tokens]:
        joined.tokens |= group.tokens
        joined.used_mb += group.used_mb
        groups.remove(group)
    groups.append(joined)
