"""Caps of agents, keys and teams, and the order between teams, as a reader sees them.

The rules are those of `lua/lib/caps.lua`, `teams.lua` and `scheduler.lua`, over a snapshot: they
explain, and only a script decides. The parties of a request are those whose caps it counts against:
its agent, its API key, its team.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from agent_sdk.keys import DEFAULT_TEAM, KEY_PARTY, MODEL_SUM, TEAM_PARTY
from agent_sdk.protocol.messages import ANY, Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state import snapshot
from agent_sdk.state.lists import scored
from agent_sdk.state.placement import PlacementRequest
from agent_sdk.state.readings import rows
from agent_sdk.teams import policy as declared
from agent_sdk.teams import status as standing
from agent_sdk.teams.policy import TeamPolicy
from agent_sdk.teams.status import LOOK_AHEAD_S
from agent_sdk.teams.sums import NOTHING, PartySums, of_quota, sums_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Request
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import PoolStatus
    from agent_sdk.teams.status import TeamStatus

NO_POLICY = TeamPolicy()


class Room(NamedTuple):
    """Room under all caps of a request, MiB, and the party that leaves least."""

    mb: float
    party: str


class Barrier(NamedTuple):
    """Limit of a team that a request is over.

    Attributes:
        code, detail: as of the refusal.
        change: the options of the nearest request within the limit.
    """

    code: str
    detail: str
    change: dict[str, int | str | bool]


@dataclass(frozen=True, slots=True)
class Caps:
    """Caps of all parties of a pool at one moment.

    Attributes:
        sums: party -> what it has; agents by their names, `key NAME`, `team NAME`.
        policies: team -> its policy; empty: no team has one, and teams have no caps.
        reserved: party -> MiB of the reservations of its waiters, by token.
        models: the models of registered devices.
    """

    pool: PoolStatus
    sums: Mapping[str, PartySums]
    policies: Mapping[str, TeamPolicy]
    reserved: Mapping[str, Mapping[str, int]]
    models: frozenset[str] = frozenset()

    def of_team(self, team: str) -> TeamPolicy:
        """Return a team's policy; without one it has no quota, and may borrow."""
        return self.policies.get(team, NO_POLICY)

    def held(self, party: str) -> PartySums:
        """Return the sums of a party; of a quota of a model its MiB, and the team's leases."""
        team, by_model, model = party.partition(MODEL_SUM)
        has = self.sums.get(team, NOTHING)
        if not by_model or model == ANY:
            return has
        mb, reserved_mb = has.models.get(model, (0, 0))
        return PartySums(mb=mb, leases=has.leases if mb else 0, reserved_mb=reserved_mb)

    def room(self, wish: PlacementRequest, token: str | None = None) -> Room:
        """Return the room under the caps of a request's parties.

        token: that of a waiter, whose reservation is not in its own way.
        """
        pool = self.pool
        most_mb, most = pool.max_memory_per_agent_mb, pool.max_leases_per_agent
        found = [self._room(wish.agent, most_mb, most, token)]
        if wish.owner:
            found.append(self._room(KEY_PARTY + wish.owner, most_mb, most, token))
        if self.policies:
            found.append(max(self._quotas(wish, token), key=lambda room: room.mb))
        return min(found, key=lambda room: room.mb)

    def room_by_model(self, wish: PlacementRequest, token: str | None) -> Callable[[str], float]:
        """Return a function that gives the room under all caps of a request on a model."""
        if not self.of_team(wish.team).models:
            room_mb = self.room(wish, token).mb
            return lambda _: room_mb
        return cache(lambda model: self.room(replace(wish, model=model), token).mb)

    def by_model(self, wish: PlacementRequest) -> bool:
        """Tell whether it is the device that decides which quota a request counts against."""
        return wish.model == ANY and bool(self.of_team(wish.team).models)

    def _quotas(self, wish: PlacementRequest, token: str | None) -> Iterator[Room]:
        """Yield the room under each quota of its team that a request may count against."""
        team = TEAM_PARTY + wish.team
        if not self.by_model(wish):
            yield self._quota_room(wish.team, wish.model, token)
            return
        for model in self.models:
            yield self._quota_room(wish.team, model, token)._replace(party=team + MODEL_SUM + ANY)
        if not self.models:
            yield Room(0, team + MODEL_SUM + ANY)

    def _quota_room(self, team: str, model: str, token: str | None) -> Room:
        of, whole = self.of_team(team), TEAM_PARTY + team
        party = whole + MODEL_SUM + model if model in of.models else whole
        has = self.held(whole)
        if of.max_leases is not None and has.leases >= of.max_leases:
            return Room(0, party)
        mb, reserved_mb = of_quota(of, has, model)
        named = [whole + MODEL_SUM + each for each in of.models]
        mine = self.reserved.get(party, {}).get(token or "", 0)
        if party == whole:  # what is reserved on models that have quotas is no part of this one
            mine -= sum(self.reserved.get(each, {}).get(token or "", 0) for each in named)
        if not of.models:
            reserved_mb = sum(self.reserved.get(whole, {}).values())
        return Room(self.team_limit_mb(team, model) - mb - reserved_mb + mine, party)

    def _room(self, party: str, most_mb: float, most_leases: float, token: str | None) -> Room:
        has = self.held(party)
        if has.leases >= most_leases:
            return Room(0, party)
        reserved = self.reserved.get(party, {})
        reserved_mb = sum(reserved.values()) - reserved.get(token or "", 0)
        return Room(most_mb - has.mb - reserved_mb, party)

    def full(self, wish: PlacementRequest) -> str | None:
        """Return the party that has as many leases as it may; None: none has."""
        most = self.pool.max_leases_per_agent
        for party in (wish.agent, KEY_PARTY + wish.owner if wish.owner else ""):
            if party and self.held(party).leases >= most:
                return party
        of_team = self.of_team(wish.team).max_leases
        party = TEAM_PARTY + wish.team
        full = bool(self.policies) and of_team is not None and self.held(party).leases >= of_team
        return party if full else None

    def most_mb(self, team: str, model: str) -> float:
        """Return the MiB that a team may ever hold by its quota of a model.

        model: `*` = the largest of those of registered models.
        """
        of = self.of_team(team)
        models = self.models if model == ANY and of.models and self.models else [model]
        each = [of.quota(model).most_mb for model in models] if self.policies else [None]
        return math.inf if None in each else max(mb for mb in each if mb is not None)

    def limit_word(self, wish: PlacementRequest) -> str:
        """Return the limit of what its team may ever hold, as a refusal names it."""
        named = wish.model in self.of_team(wish.team).models or self.by_model(wish)
        most_mb = f"{self.most_mb(wish.team, wish.model):.0f}"
        return f"most_mb@{wish.model}={most_mb}" if named else f"most_mb={most_mb}"

    def team_limit_mb(self, team: str, model: str) -> float:
        """Return the MiB that a team may hold now: its quota, and what it may borrow of others."""
        of = self.of_team(team)
        nominal_mb, most_mb = of.quota(model).nominal_mb, of.quota(model).most_mb
        most: float = math.inf if most_mb is None else most_mb
        lends = any(policy.lend_mb is not None for policy in self.policies.values())
        if not lends or most <= nominal_mb:
            return most
        has = self.held(TEAM_PARTY + team)
        held_mb, _ = of_quota(of, has, model)
        kept_mb = sum(map(self._kept_mb, {*self.policies, DEFAULT_TEAM} - {team}))
        left_mb = self.pool.capacity_mb - kept_mb - (has.mb - held_mb)
        return max(nominal_mb, min(most, left_mb), most if held_mb > most else 0)

    def _kept_mb(self, team: str) -> int:
        """Return what a team holds, or keeps of its pool-wide quota."""
        of, has = self.of_team(team), self.held(TEAM_PARTY + team)
        if of.lend_mb is None:
            return has.mb
        return has.mb + max(0, of.nominal_mb - of.lend_mb - of_quota(of, has, "")[0])

    def within_nominal(self, wish: PlacementRequest, mb: int) -> bool:
        """Tell whether a lease of so many MiB stays within a quota of its team."""
        of, has = self.of_team(wish.team), self.held(TEAM_PARTY + wish.team)
        models = self.models if self.by_model(wish) else [wish.model]
        return any(of_quota(of, has, x)[0] + mb <= of.quota(x).nominal_mb for x in models)

    def share(self, team: str) -> float:
        """Return the number by which teams that borrow are ordered: the smaller first."""
        has, weight = self.held(TEAM_PARTY + team), self.of_team(team).weight
        use = has.use_at(self.pool.now_ms, self.pool.half_life_s) + LOOK_AHEAD_S * has.mb
        return use / weight if weight else math.inf

    def barrier(self, request: Request) -> Barrier | None:
        """Return the limit of its team that a request is over; None: it is over none."""
        team = request.team or DEFAULT_TEAM
        if not self.policies:
            return None
        if team not in self.policies and team != DEFAULT_TEAM:
            return Barrier("team_unknown", team, {"team": DEFAULT_TEAM})
        return next(self._over(team, request), None)

    def _over(self, team: str, request: Request) -> Iterator[Barrier]:
        """Yield the limits of a team that a request is over, in the order of the script."""
        yield from _over(self.of_team(team), request)
        wish = PlacementRequest.of(request, self.pool)
        if wish.memory_mb * wish.devices > self.most_mb(team, wish.model):
            yield Barrier("team_limit", self.limit_word(wish), {})


def _over(of: TeamPolicy, request: Request) -> Iterator[Barrier]:
    """Yield the ceilings of a team that a request is over."""

    def barrier(name: str, most: int, **change: int | str | bool) -> Barrier:
        return Barrier("team_limit", f"{name}={most}", change)

    priority, ttl_s, hold_s = map(of.limit, ("max_priority", "max_ttl_s", "max_hold_s"))
    if priority is not None and request.priority > priority:
        yield barrier("max_priority", priority, priority=priority)
    if ttl_s and not 0 < request.ttl_ms <= ttl_s * 1000:
        yield barrier("max_ttl_s", ttl_s, ttl_s=ttl_s)
    if hold_s and request.max_hold_ms > hold_s * 1000:
        yield barrier("max_hold_s", hold_s, max_hold_s=hold_s)


def reservations_of(
    waiters: Iterable[WaiterStatus], models: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    """Return the MiB of the reservations of each party's waiters, by token.

    models: device -> its model.
    """
    found: dict[str, dict[str, int]] = {}
    for x in waiters:
        if x.reservation:
            team = TEAM_PARTY + x.team
            of_model = team + MODEL_SUM + models.get(next(iter(x.reserved), ""), "")
            for party in (x.agent, KEY_PARTY + x.owner, team, of_model):
                found.setdefault(party, {})[x.token] = x.reservation.memory_mb
    return found


class Head(NamedTuple):
    """Head of a queue, with its place between teams: the smaller first.

    Attributes:
        tier: 0 within the quota of its team, 1 where it borrows.
        share: of its team, where it borrows.
    """

    tier: int
    share: float
    rank: int
    token: str
    team: str
    host: str
    model: str


def heads(waiters: Iterable[WaiterStatus], caps: Caps) -> list[Head]:
    """Return the heads of all queues in the order of a pool whose teams have policies."""
    return sorted(_head(x, caps) for x in waiters if x.state == "waiting" and x.place == 0)


def _head(waiter: WaiterStatus, caps: Caps) -> Head:
    own = caps.within_nominal(waiter.wish, waiter.memory_mb * waiter.devices)
    return Head(
        0 if own else 1,
        0.0 if own else caps.share(waiter.team),
        waiter.rank,
        waiter.token,
        waiter.team,
        waiter.asked_host,
        waiter.model,
    )


def behind(waiter: WaiterStatus, ahead: Sequence[Head]) -> str:
    """Return the reason between teams for which another head goes first; empty: there is none.

    ahead: the heads of all queues, in their order.
    """
    mine = next((head for head in ahead if head.token == waiter.token), None)
    if mine is None:
        return ""
    for head in ahead:
        if head.token == mine.token or head[:2] == mine[:2]:
            break
        if head.team != mine.team and _meet(head, mine):
            if head.tier < mine.tier:
                return f"behind team {head.team}'s quota: its own team borrows"
            return f"behind team {head.team}, which has used less of its share"
    return ""


def _meet(one: Head, other: Head) -> bool:
    """Tell whether one device may be what both ask for, by its host and its model."""
    hosts, models = {one.host, other.host}, {one.model, other.model}
    return all(ANY in asked or len(asked) == 1 for asked in (hosts, models))


def read(keys: Keys) -> Generator[Read, Answer, tuple[TeamStatus, ...]]:
    """Read every team that has a policy, leases or waiters, by name."""
    pool = yield from snapshot.pool(keys)
    policies, sums = yield from parties(keys)
    by_model = yield from _capacities(keys, declared.named(policies))
    return standing.statuses(
        policies,
        sums,
        now_ms=pool.now_ms,
        half_life_s=pool.half_life_s,
        capacity_mb=pool.capacity_mb,
        by_model=by_model,
    )


def _capacities(keys: Keys, models: Sequence[str]) -> Generator[Read, Answer, dict[str, int]]:
    """Read what all devices of each of these models hold."""
    if not models:
        return {}
    every = (("ZRANGE", keys.fits_of(ANY, model), 0, -1, "WITHSCORES") for model in models)
    answer = yield Read(tuple(every))
    sizes = (sum(int(mb) for _, mb in scored(raw)) for raw in answer.raw)
    return dict(zip(models, sizes, strict=True))


def parties(
    keys: Keys,
) -> Generator[Read, Answer, tuple[dict[str, TeamPolicy], dict[str, PartySums]]]:
    """Read the policies of teams by name, and the sums of agents, API keys and teams."""
    answer = yield Read((("HGETALL", keys.teams), ("HGETALL", keys.agents)))
    return _parties(answer)


@of_known_form
def _parties(answer: Answer) -> tuple[dict[str, TeamPolicy], dict[str, PartySums]]:
    lines, sums = rows(answer)
    policies = {name: declared.parse(line) for name, line in lines.items()}
    return policies, sums_of(sums)
