"""To which lease a process belongs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_sdk.devices import DeviceStatus
    from agent_sdk.holders import Holders
    from broker.truth.programs import Program, Programs

    Owners = Mapping[int, frozenset[str]]

REMEMBERED_S: Final = 300.0
"""A process that is not seen for so long is forgotten: one look may miss many."""


@dataclass(slots=True)
class _Before:
    """What a process belonged to when it was seen last, on our clock, s."""

    owners: frozenset[str]
    at: float


class Matcher:
    """Remembers whose a process was: its lease may end before it, and so may its parents.

    A process belongs to the leases that it acquired itself, and to the one that GPU_LEASE_TOKEN in
    its environment names; if neither, to those that the nearest of its ancestors acquired which
    has any; if none has, to those that it belonged to before. One that is over counts only for
    who has none that lives.

    Attributes:
        claimed: leases whose holder has been found on this host; of another lease nobody knows
            which processes are its own.
        working: leases of which a process has been seen on a GPU.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[int, int], _Before] = {}
        self._named: frozenset[str] = frozenset()
        self._recalled = False
        self.claimed: set[str] = set()
        self.working: set[str] = set()

    @property
    def remembered(self) -> frozenset[str]:
        """Tokens of which it would be good to know how they ended."""
        return frozenset().union(*(each.owners for each in self._before.values())) | self._named

    def recall(self, devices: Iterable[DeviceStatus], now: float) -> None:
        """What a reporter before us knew, as the pool has it."""
        if self._recalled:
            return
        self._recalled = True
        for device in devices:
            for row in device.processes or ():
                if row.token and row.start:
                    self._before[row.pid, row.start] = _Before(frozenset({row.token}), now)

    def match(
        self, programs: Mapping[int, Program], holders: Holders, system: Programs, now: float
    ) -> dict[int, frozenset[str]]:
        """The tokens that each process belongs to, living leases and such as are over.

        `now` is on our clock, s.
        """
        leases = holders.leases
        registered: dict[str, set[str]] = {}
        for lease in leases.values():
            if ":" in lease.pid:
                registered.setdefault(lease.pid, set()).add(lease.token)
        before = frozenset().union(*(each.owners for each in self._before.values()))
        known = leases.keys() | holders.ended.keys() | holders.elsewhere | before
        living = leases.keys() | holders.elsewhere
        owners: dict[int, frozenset[str]] = {}
        for pid, program in programs.items():
            found = registered.get(program.line[0], set()) | ({program.token} & known)
            if not found:
                found = next((registered[at] for at in program.line if at in registered), set())
            last = self._before.get((pid, program.start))
            if not found and last is not None:
                found = {*last.owners}
            owners[pid] = frozenset(found & living or found)
            if found:
                self._before[pid, program.start] = _Before(owners[pid], now)
        self._forget(programs, now)
        self._named = frozenset(p.token for p in programs.values() if p.token)
        for holder, tokens in registered.items():
            if not tokens <= self.claimed and system.lives(holder):
                self.claimed |= tokens
        seen = frozenset().union(*owners.values())
        self.working = (self.working | seen) & leases.keys()
        self.claimed = (self.claimed & leases.keys()) | self.working
        return owners

    def _forget(self, programs: Mapping[int, Program], now: float) -> None:
        """Those that are over, as far as can be seen: their pid is another's, or they are gone."""
        for pid, start in [*self._before]:
            there = programs.get(pid)
            replaced = there is not None and there.start != start
            if replaced or now - self._before[pid, start].at > REMEMBERED_S:
                del self._before[pid, start]
