"""Matching of processes to leases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.evidence import ADOPTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.holders import Holders
    from broker.attribution.processes import Program, Programs

    Owners = Mapping[int, frozenset[str]]
    Registered = Mapping[str, set[str]]

REMEMBERED_S: Final = 300.0
"""Seconds after which an unseen process is forgotten: one look may miss many."""


@dataclass(slots=True)
class _Before:
    """Leases of a process when it was seen last; `at` is on our clock, s."""

    owners: frozenset[str]
    at: float
    proven: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Belonging:
    """Leases of a process.

    Attributes:
        owners: the leases charged with its memory, living or ended.
        proven: owners that the process, or the ancestor that has them, was seen to hold.
        living: living leases that it belongs to by any path at all.
    """

    owners: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset()
    living: frozenset[str] = frozenset()


UNOWNED: Final = Belonging()


class Matcher:
    """Matcher of processes to leases; it remembers, because leases and parents may end first.

    A process belongs to the leases that it acquired, and to the one that GPU_LEASE_TOKEN in
    its environment names; if neither, to those that the nearest of its ancestors acquired which
    has any; if none has, to those that it belonged to before. An ended lease counts only for a
    process without a living one.

    A lease that `gpu-broker adopt` took belongs to the process that its holder shows it for.

    A lease's pid is what its caller says. It counts if the process shows the lease (see
    `agent_sdk.evidence`); if we may not look into that process it counts too, but proves nothing.

    Attributes:
        claimed: leases whose holder has been found on this host; the processes of any other
            lease are unknown.
        working: leases with a process that has been seen on a GPU.
        belongings: the result of the last match, by pid.
    """

    def __init__(self, system: Programs) -> None:
        self._system = system
        self._before: dict[tuple[int, int], _Before] = {}
        self._shown: dict[tuple[str, str], int] = {}
        self._named: frozenset[str] = frozenset()
        self._recalled = False
        self._adopters: dict[str, str] = {}
        self.claimed: set[str] = set()
        self.working: set[str] = set()
        self.belongings: dict[int, Belonging] = {}

    @property
    def remembered(self) -> frozenset[str]:
        """Tokens whose end is worth asking for."""
        return frozenset().union(*(each.owners for each in self._before.values())) | self._named

    def recall(self, devices: Iterable[DeviceStatus], now: float) -> None:
        """Take over an earlier reporter's matches from the pool: they prove nothing."""
        if self._recalled:
            return
        self._recalled = True
        for device in devices:
            for row in device.processes or ():
                if row.token and row.start:
                    self._before[row.pid, row.start] = _Before(frozenset({row.token}), now)

    def match(
        self, programs: Mapping[int, Program], holders: Holders, now: float
    ) -> dict[int, frozenset[str]]:
        """Return the tokens of each process, of living and of ended leases.

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
        self._adopters = {
            lease.token: lease.pid for lease in leases.values() if lease.client.startswith(ADOPTS)
        }
        self.belongings = {
            pid: self._belonging(program, registered, known, living)
            for pid, program in programs.items()
        }
        for pid, each in self.belongings.items():
            if each.owners:
                seen_at = programs[pid].start
                self._before[pid, seen_at] = _Before(each.owners, now, each.proven)
        self._forget(programs, now)
        self._named = frozenset(p.token for p in programs.values() if p.token)
        self._claim(registered, leases.keys())
        self._shown = {key: pid for key, pid in self._shown.items() if key[1] in leases}
        return {pid: each.owners for pid, each in self.belongings.items()}

    def _belonging(
        self,
        program: Program,
        registered: Registered,
        known: AbstractSet[str],
        living: AbstractSet[str],
    ) -> Belonging:
        """Return the leases that a process belongs to now."""
        line = [
            self._acquired(at, pid, registered)
            for at, pid in zip(program.line, program.pids, strict=True)
        ]
        own, own_proven = line[0]
        named = {program.token} & known
        found, proven = own | named, own_proven | named
        if not found:
            found, proven = next((each for each in line if each[0]), (set(), set()))
        last = self._before.get((program.pid, program.start), _Before(frozenset(), 0.0))
        if not found:
            found, proven = {*last.owners}, {*last.proven}
        owners = frozenset(found & living or found)
        paths = {program.token, *program.inherited, *last.owners}.union(*(each[0] for each in line))
        return Belonging(owners, owners & proven, frozenset(paths & living))

    def _acquired(self, at: str, pid: int, registered: Registered) -> tuple[set[str], set[str]]:
        """Return the leases that count as acquired by a process, and those that it shows."""
        told = {token: self._evidence(at, pid, token) for token in registered.get(at, ())}
        proven = {token for token, shown in told.items() if shown}
        unknown = {token for token, shown in told.items() if shown is None}
        adopted = self._adopted(at, pid)
        return (proven | adopted) or unknown, proven | adopted

    def _adopted(self, at: str, pid: int) -> set[str]:
        """Return the leases that another process holds for this one, and shows it."""
        found = set()
        for token, holder in self._adopters.items():
            shown = self._shown.get((at, token)) == pid
            if shown or self._system.adopts(holder, token, pid, at):
                self._shown[at, token] = pid
                found.add(token)
        return found

    def _evidence(self, at: str, pid: int, token: str) -> bool | None:
        """Tell whether a process shows a lease, or did: what it runs may have changed since."""
        if self._shown.get((at, token)) == pid:
            return True
        start = at.partition(":")[2]
        shown = self._system.evidence(pid, int(start), token) if start.isdecimal() else False
        if shown:
            self._shown[at, token] = pid
        return shown

    def _claim(self, registered: Registered, leases: AbstractSet[str]) -> None:
        """Note the leases with holders on this host."""
        for holder, tokens in registered.items():
            if tokens <= self.claimed or not self._system.lives(holder):
                continue
            pid = int(holder.partition(":")[0])
            self.claimed |= {t for t in tokens if self._evidence(holder, pid, t) is not False}
        seen = frozenset().union(*(each.owners for each in self.belongings.values()))
        self.working = (self.working | seen) & leases
        self.claimed = (self.claimed & leases) | self.working

    def _forget(self, programs: Mapping[int, Program], now: float) -> None:
        """Forget processes that ended, as far as can be seen: gone, or their pid reused."""
        for pid, start in [*self._before]:
            there = programs.get(pid)
            replaced = there is not None and there.start != start
            if replaced or now - self._before[pid, start].at > REMEMBERED_S:
                del self._before[pid, start]
