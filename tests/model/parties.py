"""Parties of a lease, what caps leave them, and teams: quotas, use, share.

Numbers are MiB and the pool's milliseconds, but `raw_us`, the server's clock.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.model.entries import POLICY, TAKEN, Device, Entry

if TYPE_CHECKING:
    from tests.model.ledger import Chooser

LOOK_AHEAD_S, CREDIT_S = 60, 60


class Sums(NamedTuple):
    """Sums of a party: MiB and leases, offers included, requests that wait, MiB reserved."""

    mb: int
    leases: int
    waiters: int
    reserved_mb: int


class TeamPolicy(NamedTuple):
    """A team's policy; without one, that of a pool in which no team has any."""

    weight: int = 1
    nominal_mb: int = 0
    borrow_mb: float = math.inf
    lend_mb: float = math.inf
    max_priority: int = 9
    max_leases: float = math.inf
    max_waiters: float = math.inf
    max_hold_s: int = 0
    max_ttl_s: int = 0

    @property
    def most_mb(self) -> float:
        """MiB that the team may ever have."""
        return self.nominal_mb + self.borrow_mb


@dataclass(slots=True)
class Parties(ABC):
    """A pool's clock and its parties. `use`: MiB-seconds of a team, and when that was."""

    choose: Chooser
    raw_us: int = 0
    now: int = 0
    policy: dict[str, int] = field(default_factory=lambda: dict(POLICY))
    devices: dict[str, Device] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    teams: dict[str, TeamPolicy] = field(default_factory=dict)
    use: dict[str, tuple[float, int]] = field(default_factory=dict)

    def party(self, name: str) -> Sums:
        """Sums of an agent, an API key or a team."""
        mb = leases = waiters = reserved_mb = 0
        for e in self.entries.values():
            if name in e.parties:
                if e.state in TAKEN:
                    mb, leases = mb + sum(m for _, m in e.held), leases + 1
                waiters += e.state == "waiting"
                reserved_mb += e.reservation_mb
        return Sums(mb, leases, waiters, reserved_mb)

    def team(self, name: str) -> TeamPolicy:
        """The policy of a team."""
        return self.teams.get(name, TeamPolicy())

    def caps(self, party: str) -> tuple[float, float]:
        """MiB and leases that a party may have."""
        if party.startswith("team "):
            team = party[5:]
            return self.limit_mb(team), self.team(team).max_leases
        return self.policy["max_memory_per_agent_mb"], self.policy["max_leases_per_agent"]

    @property
    def lends_less(self) -> bool:
        """Tell whether any team keeps some of its quota for itself."""
        return any(of.lend_mb != math.inf for of in self.teams.values())

    def limit_mb(self, team: str) -> float:
        """MiB that a team may have now: its quota, and beyond it what others lend it."""
        of, mb = self.team(team), self.party(f"team {team}").mb
        if not self.lends_less or of.most_mb <= of.nominal_mb:
            return of.most_mb
        left_mb = sum(d.total_mb - d.system_mb for d in self.devices.values())
        for name in {*self.teams, "default"} - {team}:
            other = self.team(name)
            left_mb -= max(self.party(f"team {name}").mb, other.nominal_mb - other.lend_mb)
        return max(of.nominal_mb, min(of.most_mb, left_mb), of.most_mb if mb > of.most_mb else 0)

    def left(self, party: str, own_mb: int = 0) -> float:
        """MiB that a cap leaves a party; none when it has as many leases as it may."""
        sums, (most_mb, most_leases) = self.party(party), self.caps(party)
        may = sums.leases < most_leases
        return most_mb - sums.mb - sums.reserved_mb + own_mb if may else 0

    def least(self, e: Entry) -> tuple[float, str]:
        """MiB that all caps leave e, and the party whose cap leaves least.

        The reservation of e itself is not in its way.
        """
        counted = e.parties if self.teams else e.parties[:-1]
        rooms = [(self.left(party, e.reservation_mb), party) for party in counted]
        return min(rooms, key=lambda room: room[0])

    def room_of(self, e: Entry) -> float:
        """MiB that all caps leave e."""
        return self.least(e)[0]

    def holds(self, party: str, own_mb: int) -> bool:
        """Has a party anything but this reservation?"""
        sums = self.party(party)
        return sums.leases > 0 or sums.reserved_mb > own_mb

    def has_more(self, e: Entry) -> bool:
        """Has the party whose cap leaves least anything but the reservation of e?"""
        return self.holds(self.least(e)[1], e.reservation_mb)

    def full_of_leases(self, e: Entry) -> str:
        """The party that has as many leases as it may; '' when none has."""
        full = (p for p in e.parties if self.party(p).leases >= self.caps(p)[1])
        return next(full, "")

    def full_of_waiters(self, e: Entry) -> str:
        """The party that has as many waiters as it may; '' when none has."""
        for party in e.parties:
            most: float = self.policy["max_waiters_per_agent"]
            if party.startswith("team "):
                most = self.team(party[5:]).max_waiters
            if self.party(party).waiters >= most:
                return party
        return ""

    # Use, and the share by which borrowers are ordered.

    def use_now(self, team: str) -> float:
        """F1: use decays by half in `half_life_s`, and what the team holds accrues."""
        use, at_ms = self.use.get(team, (0.0, self.now))
        mb, passed_ms = self.party(f"team {team}").mb, self.now - at_ms
        half_life_ms = self.policy["half_life_s"] * 1000
        if passed_ms <= 0:
            return use
        if not half_life_ms:
            return use + mb * passed_ms / 1000
        left = 2.0 ** (-passed_ms / half_life_ms)
        return use * left + mb * (half_life_ms / 1000 / math.log(2)) * (1 - left)

    def accrue(self, team: str) -> None:
        """Bring a team's use up to now, before what it holds changes."""
        if self.teams:
            at_ms = self.use.get(team, (0.0, self.now))[1]
            self.use[team] = self.use_now(team), max(at_ms, self.now)

    def share(self, team: str) -> float:
        """F2: the smaller comes first; a team of weight 0 after all others."""
        weight = self.team(team).weight
        use = self.use_now(team) + LOOK_AHEAD_S * self.party(f"team {team}").mb
        return use / weight if weight else 1e300 + use * 1e280

    def join_team(self, team: str) -> None:
        """F3: a team begins to wait. Its past use counts for CREDIT_S of the largest device."""
        waiters = {name: self.party(f"team {name}").waiters for name in {*self.teams, team}}
        if (
            not self.teams
            or waiters[team]
            or not any(e.state == "waiting" for e in self.entries.values())
        ):
            return
        top, waits = 0.0, list[tuple[str, int]]()
        for name, count in waiters.items():
            if (weight := self.team(name).weight) and (count or name == team):
                self.accrue(name)
                waits.append((name, weight))
                top = max(top, self.use[name][0] / weight)
        largest = max((d.total_mb - d.system_mb for d in self.devices.values()), default=0)
        for name, weight in waits:
            use, at_ms = self.use[name]
            self.use[name] = max(use, weight * (top - CREDIT_S * largest)), at_ms

    def within_nominal(self, e: Entry, mb: float) -> bool:
        """Does e stay within its team's quota with so many MiB, beside what comes for others?"""
        team = e.ask.team
        coming_mb = sum(
            o.reservation_mb for o in self.entries.values()
            if o.preempts and o is not e and o.ask.team == team
        )  # fmt: skip
        return self.party(f"team {team}").mb + coming_mb + mb <= self.team(team).nominal_mb
