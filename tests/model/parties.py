"""Parties of a lease, what caps leave them, and teams: quotas, use, share.

Numbers are MiB and the pool's milliseconds, but `raw_us`, the server's clock.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.model.entries import FOREVER_MS, POLICY, TAKEN, Ask, Device, Entry

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
    models: tuple[tuple[str, int, float], ...] = ()

    @classmethod
    def of(cls, line: dict[str, int]) -> TeamPolicy:
        """A policy by its words; quotas by model as `nominal_mb@MODEL`."""
        named = sorted({word.partition("@")[2] for word in line if "@" in word})
        models = tuple(
            (model, line.get(f"nominal_mb@{model}", 0), line.get(f"borrow_mb@{model}", math.inf))
            for model in named
        )
        return cls(**{word: n for word, n in line.items() if "@" not in word}, models=models)

    def named(self, model: str) -> str:
        """The model of the quota that counts on devices of this one; '' for the pool-wide."""
        return model if any(model == name for name, *_ in self.models) else ""


class Quota(NamedTuple):
    """A quota of a team, and what it has of that."""

    party: str
    model: str
    mb: int
    reserved_mb: int
    nominal_mb: int
    borrow_mb: float


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

    def most_leases(self, party: str) -> float:
        """Leases that a party may have."""
        if party.startswith("team "):
            return self.team(party[5:]).max_leases
        return self.policy["max_leases_per_agent"]

    def by_model(self, ask: Ask) -> bool:
        """Is it the device that decides which quota it counts against?"""
        return ask.model == "*" and bool(self.team(ask.team).models)

    def registered(self, memory_mb: int = 0) -> list[str]:
        """The models of which there is a device of so much memory."""
        sizes = self.devices.values()
        return sorted({d.model for d in sizes if d.total_mb - d.system_mb >= memory_mb})

    def in_quota(self, e: Entry, model: str) -> int:
        """MiB of e that count against its team's quota of a model."""
        of = self.team(e.ask.team)
        return sum(
            mb for uuid, mb in e.held if of.named(self.devices[uuid].model) == of.named(model)
        )

    def reserved_in(self, e: Entry, model: str) -> int:
        """MiB that are reserved for e and count against its team's quota of a model."""
        of = self.team(e.ask.team)
        at = self.devices[e.reserved[0]].model if e.reserved else ""
        return e.reservation_mb if of.named(at) == of.named(model) else 0

    def quota(self, team: str, model: str) -> Quota:
        """The quota that a lease of a team on a device of this model counts against."""
        of = self.team(team)
        name, party = of.named(model), f"team {team}"
        nominal_mb, borrow_mb = next(
            ((n, b) for each, n, b in of.models if each == name), (of.nominal_mb, of.borrow_mb)
        )
        mine = [e for e in self.entries.values() if e.ask.team == team]
        mb = sum(self.in_quota(e, model) for e in mine if e.state in TAKEN)
        reserved_mb = sum(self.reserved_in(e, model) for e in mine)
        party += f"#model {name}" if name else ""
        return Quota(party, model, mb, reserved_mb, nominal_mb, borrow_mb)

    def quotas(self, team: str) -> list[Quota]:
        """All quotas of a team."""
        names = [name for name, *_ in self.team(team).models]
        return [self.quota(team, model) for model in [*names, ""]]

    @property
    def lends_less(self) -> bool:
        """Tell whether any team keeps some of its quota for itself."""
        return any(of.lend_mb != math.inf for of in self.teams.values())

    def limit_mb(self, team: str, quota: Quota) -> float:
        """MiB that a team may have now of a quota: that, and beyond it what others lend it."""
        most_mb = quota.nominal_mb + quota.borrow_mb
        if not self.lends_less or not quota.borrow_mb:
            return most_mb
        left_mb = sum(d.total_mb - d.system_mb for d in self.devices.values())
        for name in {*self.teams, "default"} - {team}:
            other, rest = self.team(name), self.quota(name, "")
            own_mb = max(rest.mb, other.nominal_mb - other.lend_mb)
            left_mb -= self.party(f"team {name}").mb - rest.mb + own_mb
        left_mb -= self.party(f"team {team}").mb - quota.mb
        over_mb = most_mb if quota.mb > most_mb else 0
        return max(quota.nominal_mb, min(most_mb, left_mb), over_mb)

    def left_of(self, team: str, quota: Quota, own_mb: int = 0) -> float:
        """MiB that a quota leaves its team; none when it has as many leases as it may."""
        if self.party(f"team {team}").leases >= self.team(team).max_leases:
            return 0
        return self.limit_mb(team, quota) - quota.mb - quota.reserved_mb + own_mb

    def left(self, party: str, own_mb: int = 0) -> float:
        """MiB that a cap leaves a party; none when it has as many leases as it may."""
        if party.startswith("team "):
            team, _, model = party[5:].partition("#model ")
            known = self.quotas(team) if model == "*" else [self.quota(team, model)]
            return max(self.left_of(team, quota, own_mb) for quota in known)
        sums, most_mb = self.party(party), self.policy["max_memory_per_agent_mb"]
        may = sums.leases < self.most_leases(party)
        return most_mb - sums.mb - sums.reserved_mb + own_mb if may else 0

    def least(self, e: Entry, model: str = "") -> tuple[float, str]:
        """MiB that all caps leave e, and the party whose cap leaves least.

        The reservation of e itself is not in its way. `model`: of the devices, where it is known.
        """
        rooms = [(self.left(party, e.reservation_mb), party) for party in e.parties[:-1]]
        if self.teams:
            rooms.append(self.team_room(e, model))
        return min(rooms, key=lambda room: room[0])

    def team_room(self, e: Entry, model: str = "") -> tuple[float, str]:
        """MiB that the quotas of its team leave e, and the party that holds it back."""
        team, any_of_them = e.ask.team, self.by_model(e.ask) and not model
        models = self.registered(e.memory_mb) if any_of_them else [model or e.ask.model]
        found = [
            (self.left_of(team, quota, self.reserved_in(e, each)), quota.party)
            for each in models
            for quota in [self.quota(team, each)]
        ]
        best = max(found, default=(0.0, ""))
        return (best[0], f"team {team}#model *") if any_of_them else best

    def room_of(self, e: Entry, model: str = "") -> float:
        """MiB that all caps leave e."""
        return self.least(e, model)[0]

    def room_on(self, e: Entry, model: str, room_mb: float) -> float:
        """MiB that all caps leave e on devices of a model, where they leave it `room_mb` at all."""
        if room_mb >= FOREVER_MS or not self.by_model(e.ask):
            return room_mb
        return self.room_of(e, model)

    def holds(self, party: str, own_mb: int) -> bool:
        """Has a party anything but this reservation?"""
        name, _, model = party.partition("#model ")
        sums, of = self.party(name), self.team(name[5:]) if name.startswith("team ") else None
        if not of or not of.models:
            return sums.leases > 0 or sums.reserved_mb > own_mb
        quota = self.quota(name[5:], model)
        mb, reserved_mb = (quota.mb, quota.reserved_mb) if model != "*" else (
            sums.mb, sums.reserved_mb)  # fmt: skip
        return mb > 0 or sums.leases >= of.max_leases or reserved_mb > own_mb

    def cap_names(self, e: Entry) -> list[str]:
        """All parties whose caps may hold back waiters of the parties of e."""
        found = [*e.parties[:-1]]
        if self.teams:
            found += [quota.party for quota in self.quotas(e.ask.team)]
            if self.team(e.ask.team).models:
                found.append(f"team {e.ask.team}#model *")
        return found

    def has_more(self, e: Entry) -> bool:
        """Has the party whose cap leaves least anything but the reservation of e?"""
        return self.holds(self.least(e)[1], e.reservation_mb)

    def full_of_leases(self, e: Entry) -> str:
        """The party that has as many leases as it may; '' when none has."""
        full = (p for p in e.parties if self.party(p).leases >= self.most_leases(p))
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
        names = {*self.teams, "default", team}
        waiters = {name: self.party(f"team {name}").waiters for name in names}
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

    def within_nominal(self, e: Entry, mb: float, model: str) -> bool:
        """Does e stay within its team's quota with so many MiB, beside what comes for others?"""
        quota = self.quota(e.ask.team, model)
        coming_mb = sum(
            self.reserved_in(o, model) for o in self.entries.values()
            if o.preempts and o is not e and o.ask.team == e.ask.team
        )  # fmt: skip
        return quota.mb + coming_mb + mb <= quota.nominal_mb

    def may_reclaim(self, e: Entry) -> bool:
        """May e stay within a quota of its team? Where it names no model, the device decides."""
        asks_mb = e.memory_mb * e.ask.devices
        return bool(self.teams) and (
            self.by_model(e.ask) or self.within_nominal(e, asks_mb, e.ask.model)
        )
