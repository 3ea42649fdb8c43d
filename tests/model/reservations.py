"""Reservations for heads that have waited long: devices, horizons, use by others meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import isclose

from tests.model.entries import (
    DOUBLINGS,
    HOLDERS_READ,
    KEEP_AFTER_MS,
    TAKEN,
    Ask,
    Device,
    Entry,
    demand,
)  # fmt: skip
from tests.model.ledger import Ledger

Options = list[tuple[str, ...]]
Place = tuple[int, float, int]
"""Between teams: 0 within the nominal quota and 1 beyond it, then the share, then the rank."""


@dataclass(slots=True)
class Reservations(Ledger):
    """A pool in which devices may be reserved."""

    def suits(self, ask: Ask, d: Device) -> bool:
        joins = ask.devices == 1 or not d.parent  # no id of the walk is AMD's
        return joins and ask.host in {"*", d.host} and ask.model in {"*", d.model}

    def whole(self, ask: Ask) -> bool:
        fractions = self.policy["allow_fractional_shares"]
        return bool(ask.exclusive) or ask.devices > 1 or not fractions

    def place_of(self, e: Entry) -> tuple[Place, Place]:
        """The first and the last place that e may have between teams, by what its devices count."""
        if not self.teams:
            return (0, 0.0, e.rank), (0, 0.0, e.rank)
        models = self.registered() if self.by_model(e.ask) else [e.ask.model]
        owns = [own for model in models for own in self.owns_on(e, model)]
        mine, borrows = (0, 0.0, e.rank), (1, self.share(e.ask.team), e.rank)
        return mine if any(owns) else borrows, mine if owns and all(owns) else borrows

    def owns_on(self, e: Entry, model: str) -> tuple[bool, bool]:
        """Is e within the nominal quota of a model by the least, and the most, of its devices?"""
        quota, sizes = self.quota(e.ask.team, model), {e.memory_mb}
        if self.whole(e.ask):
            mine = [uuid for uuid, d in self.devices.items()
                    if self.suits(e.ask, d) and model in {d.model, "*"}]  # fmt: skip
            sizes |= {x.free_mb for uuid, x in self.loads().items() if x.up and uuid in mine}
        least_mb, most_mb = min(sizes) * e.ask.devices, max(sizes) * e.ask.devices
        left_mb = quota.nominal_mb - quota.mb
        return least_mb <= left_mb, most_mb <= left_mb

    def comes_first(self, f: Entry, e: Entry) -> bool:
        """F4: is f surely before e? Within nominal quotas by rank, then by share, then by rank."""
        (tier, share, rank), (other, other_share, other_rank) = (
            self.place_of(f)[1],
            self.place_of(e)[0],
        )
        if self.choose.backlog and rank >= other_rank:
            return False
        if tier != other:
            return tier < other
        if share != other_share:
            return share < other_share and not isclose(share, other_share, rel_tol=1e-9)
        return rank < other_rank

    def team_leads(self, f: Entry, e: Entry, *, surely: bool) -> bool:
        """F4: may f take over what is reserved for e? By tier and share; the rank takes nothing."""
        tier, share, _ = self.place_of(f)[surely]
        other, other_share, _ = self.place_of(e)[not surely]
        if tier != other:
            return tier < other
        if isclose(share, other_share, rel_tol=1e-9):
            return not surely and share != other_share
        return share < other_share

    @property
    def idle_ms(self) -> int:
        return self.policy["reservation_idle_s"] * 1000

    def charge(self, e: Entry, uuid: str) -> int | None:
        """MiB that it counts if the device becomes what e asks; None: it cannot."""
        d = self.devices[uuid]
        most_mb = d.total_mb - d.system_mb - d.unleased_mb
        if d.state != "ok" or d.drained or not self.suits(e.ask, d) or most_mb < e.memory_mb:
            return None
        if not self.whole(e.ask):
            return e.memory_mb
        return most_mb if d.unleased_mb <= d.idle_unleased_mb else None

    def check(self, e: Entry) -> None:
        """At each poll of its waiter: a reservation that is worth nothing any more ends."""
        if not e.reserved:
            return
        charges, loads = [self.charge(e, uuid) for uuid in e.reserved], self.loads()
        beyond = not e.preempts and self._beyond(e, charges)
        if None in charges or beyond:
            self.cancel(e)
            return
        fractions = self.policy["allow_fractional_shares"]
        mine = [loads[uuid] for uuid in e.reserved]
        unused = any(x.sharable if fractions else x.empty for x in mine)
        if not unused and e.preempts:
            return
        if not unused:
            e.until_ms = max(e.until_ms, self.now + self.idle_ms)
        elif self.now > e.until_ms:
            self.give_up(e)

    def _beyond(self, e: Entry, charges: list[int | None]) -> bool:
        """Is what is reserved for e more than its caps leave?"""
        model = self.devices[e.reserved[0]].model if self.teams else ""
        return sum(mb or 0 for mb in charges) > self.room_of(e, model)

    def give_up(self, e: Entry) -> None:
        """The horizon: the devices rest, and e rests."""
        for uuid in e.reserved:
            self.devices[uuid].reservable_ms = self.now + self.idle_ms
        self.cancel(e)
        e.reserves_ms = self.now + self.idle_ms * 2 ** min(e.reservations, DOUBLINGS)
        e.reservations += 1

    def reserve(self, e: Entry) -> None:
        """L3: after half a minute a head reserves what can become what it asks."""
        early = self.now - e.enqueued_ms < KEEP_AFTER_MS or self.now < e.reserves_ms
        if e.reserved or early or not self.idle_ms:
            return
        options = self.reservable(e)
        chosen = self.choose.keep(e.token, options)
        demand(not chosen or tuple(sorted(chosen)) in options, f"L3: {e.token} reserves {chosen}")
        e.misses = 0 if chosen or not self.reservable(e, surely=True) else e.misses + 1
        seen = e.misses <= self.choose.pages or self.choose.backlog
        demand(seen, f"L3: nothing is reserved for {e.token}, of {options}")
        if chosen:
            for uuid in chosen:
                self.unkeep(uuid)
            e.known_end_ms = self.known_end(e, chosen)
            e.reserved, e.at_fence, e.until_ms = chosen, self.fence, self.now + self.idle_ms
            e.reservation_mb = sum(self.charge(e, uuid) or 0 for uuid in chosen)

    def reservable(self, e: Entry, *, surely: bool = False) -> Options:
        """All sets of devices that e may reserve now, within what its caps leave.

        They may be reserved for one of a team that comes after; `surely`: without a doubt.
        """
        groups, room_mb = dict[tuple[str, str], list[str]](), self.room_of(e)
        loads = self.loads()
        for uuid, d in sorted(self.devices.items()):
            owner = self.entries.get(loads[uuid].reserved_for)
            after = owner is None or (
                bool(self.teams) and not owner.preempts
                and self.team_leads(e, owner, surely=surely)
            )  # fmt: skip
            if after and self.now >= d.reservable_ms and self.charge(e, uuid) is not None:
                groups.setdefault((d.host, d.model), []).append(uuid)
        return [
            some
            for (_, model), group in groups.items()
            for some in combinations(group, e.ask.devices)
            if sum(self.charge(e, uuid) or 0 for uuid in some) <= self.room_on(e, model, room_mb)
        ]

    def known_end(self, e: Entry, devices: tuple[str, ...]) -> int:
        """By when all that e waits for on them has surely ended; 0: that is not known."""
        last_ms, loads = 0, self.loads()
        for uuid in devices:
            x = loads[uuid]
            share = x.sharable and x.free_mb >= e.memory_mb
            if x.empty if self.whole(e.ask) else share:
                continue
            held = [o for o in self.entries.values() if uuid in dict(o.held)]
            if len(held) > HOLDERS_READ:
                return 0
            for o in held:
                end_ms = o.expires_at_ms if o.revoked else o.hold_until_ms
                if o.state in TAKEN and not (end_ms and o.state == "active"):
                    return 0
                last_ms = max(last_ms, end_ms if o.state == "active" else 0)
        return last_ms

    def end_moved(self, lease: Entry) -> None:
        """A lease ends at another time: so may what is lent of reservations on its devices."""
        for e in self.entries.values():
            if e.known_end_ms and set(e.reserved) & {uuid for uuid, _ in lease.held}:
                e.known_end_ms = self.known_end(e, e.reserved)

    def lent_until(self, lease: Entry) -> int:
        """By when a lease must have ended, since what it has is lent; 0: it is not."""
        mine = {uuid for uuid, _ in lease.held}
        return min(
            (
                e.known_end_ms
                for e in self.entries.values()
                if e.known_end_ms and set(e.reserved) & mine and lease.fence > e.at_fence
            ),
            default=0,
        )

    def end(self, e: Entry, outcome: str, ended_ms: int | None = None) -> None:
        """End a lease without its holder's word; what it held back is lent no longer for it."""
        Ledger.end(self, e, outcome, ended_ms)
        self.end_moved(e)

    def bury(self, e: Entry, outcome: str) -> None:
        """It is over; the same for what it held."""
        active = e.state == "active"
        Ledger.bury(self, e, outcome)
        if active:
            self.end_moved(e)

    def hold_ms(self, ask: Ask) -> int:
        """The time for which it may be held: as asked, else its team's; 0: without an end."""
        return ask.max_hold_ms or self.team(ask.team).max_hold_s * 1000

    def lends(self) -> bool:
        """Is of any reservation known when what it waits for has ended?"""
        return any(e.known_end_ms for e in self.entries.values() if e.reserved)

    def lent(self, e: Entry, room_mb: float) -> Options:
        """EASY backfill: what e may use of what is reserved for others, with what is idle."""
        if not self.hold_ms(e.ask) or e.memory_mb * e.ask.devices > room_mb:
            return []
        ends_ms, loads = self.now + self.hold_ms(e.ask), self.loads()
        found, groups, lent = Options(), dict[tuple[str, str], list[str]](), set[str]()
        for o in self.entries.values():
            lent |= set(o.reserved) if o.token != e.token and o.known_end_ms >= ends_ms else set()
        for uuid, d in sorted(self.devices.items()):
            x = loads[uuid]
            may = uuid in lent or x.reserved_for in {"", e.token}
            if not (may and x.up and self.suits(e.ask, d) and x.free_mb >= e.memory_mb):
                continue
            if self.whole(e.ask) and x.empty:
                groups.setdefault((d.host, d.model), []).append(uuid)
            elif not self.whole(e.ask) and x.sharable and uuid in lent:
                found += [(uuid,)] if e.memory_mb <= self.room_on(e, d.model, room_mb) else []
        for (_, model), group in groups.items():
            here_mb = self.room_on(e, model, room_mb)
            found += [
                some
                for some in combinations(group, e.ask.devices)
                if lent & set(some) and sum(loads[uuid].free_mb for uuid in some) <= here_mb
            ]
        return found
