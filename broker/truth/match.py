"""To which lease a process belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.holders import Ended
    from agent_sdk.snapshot import LeaseStatus
    from broker.truth.programs import Program, Programs

    Owners = Mapping[int, frozenset[str]]


class Matcher:
    """Remembers whose a process was: its lease may end before it, and so may its parents.

    A process belongs to the lease that GPU_LEASE_TOKEN in its environment names; else to those
    that it, or the nearest of its ancestors that holds any, acquired; else to those that it
    belonged to before.

    Attributes:
        claimed: leases whose holder has been found on this host; of another lease nobody knows
            which processes are its own.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[int, int], frozenset[str]] = {}
        self._named: frozenset[str] = frozenset()
        self.claimed: set[str] = set()

    @property
    def remembered(self) -> frozenset[str]:
        """Tokens of which it would be good to know how they ended."""
        return frozenset().union(*self._before.values()) | self._named

    def match(
        self,
        programs: Mapping[int, Program],
        leases: Mapping[str, LeaseStatus],
        ended: Mapping[str, Ended],
        system: Programs,
    ) -> dict[int, frozenset[str]]:
        """The tokens that each process belongs to, living leases and such as are over."""
        registered: dict[str, set[str]] = {}
        for lease in leases.values():
            if ":" in lease.pid:
                registered.setdefault(lease.pid, set()).add(lease.token)
        known = leases.keys() | ended.keys() | self.remembered
        owners: dict[int, frozenset[str]] = {}
        for pid, program in programs.items():
            holder = next((at for at in program.line if at in registered), None)
            if program.token in known:
                owners[pid] = frozenset({program.token})
            elif holder is not None:
                owners[pid] = frozenset(registered[holder])
            else:
                owners[pid] = self._before.get((pid, program.start), frozenset())
            self.claimed |= registered.get(holder or "", set())
        self._before = {(p, programs[p].start): names for p, names in owners.items() if names}
        self._named = frozenset(p.token for p in programs.values() if p.token)
        for holder, tokens in registered.items():
            if not tokens <= self.claimed and system.lives(holder):
                self.claimed |= tokens
        self.claimed &= leases.keys()
        self.claimed |= leases.keys() & frozenset().union(*owners.values())
        return owners
