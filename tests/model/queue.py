"""Placement and the queue: what each request may have, and which is next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

from tests.model.entries import (
    CLAIM_MS,
    FOREVER_MS,
    Ask,
    Entry,
    Load,
    demand,
)  # fmt: skip
from tests.model.preemption import Preemption


@dataclass(slots=True)
class Queue(Preemption):
    """A pool in which some wait."""

    def fitting(self, e: Entry, room_mb: float, *, others: bool = False) -> list[tuple[str, ...]]:
        """Every set of devices that could be e's now.

        `others`: also those kept for who comes after it.
        """
        if e.memory_mb * e.ask.devices > room_mb:
            return []
        found, groups = [], dict[tuple[str, str], list[str]]()
        whole, loads = self.whole(e.ask), self.loads()
        for uuid, d in self.devices.items():
            x = loads[uuid]
            if not (x.up and self.suits(e.ask, d) and x.free_mb >= e.memory_mb):
                continue
            if x.reserved_for not in {"", e.token} and not (others and self.may_pass(e, x)):
                continue
            if whole and x.empty:
                groups.setdefault((d.host, d.model), []).append(uuid)
            elif not whole and x.sharable and e.memory_mb <= self.room_on(e, d.model, room_mb):
                found.append((uuid,))
        for (_, model), group in groups.items():
            here_mb = self.room_on(e, model, room_mb)
            found += [
                some
                for some in combinations(sorted(group), e.ask.devices)
                if sum(loads[uuid].free_mb for uuid in some) <= here_mb
            ]
        return found

    def may_pass(self, e: Entry, x: Load) -> bool:
        """May e get what is reserved for one that comes after it? Not where leases end for that."""
        owner = self.entries[x.reserved_for]
        return not owner.preempts and (e is owner or not self.comes_first(owner, e))

    def sure(self, e: Entry) -> bool:
        """Tell whether it is known what e may have.

        The policy has not changed since it was looked at, and it borrows nothing that others begin
        or cease to lend.
        """
        return not e.blind and not (self.lends_less and self.place_of(e)[1][0])

    def best(self, e: Entry, options: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Devices that placement takes: most free, best fit, or the smallest of a host and model.

        Within a nominal quota of its team first, where the device decides which quota that is.
        """
        if self.by_model(e.ask):
            own = [some for some in options if self.stays_own(e, some)]
            options = own or options
        loads, least = self.loads(), dict[tuple[str, str], int]()
        free = {some: sum(loads[uuid].free_mb for uuid in some) for some in options}
        if not self.whole(e.ask):
            top = (min if e.ask.placement == "pack" else max)(free.values(), default=0)
            return [some for some in options if free[some] == top]
        of = {some: (self.devices[some[0]].host, self.devices[some[0]].model) for some in options}
        for some in options:
            least[of[some]] = min(free[some], least.get(of[some], free[some]))
        return [some for some in options if free[some] == least[of[some]]]

    def stays_own(self, e: Entry, some: tuple[str, ...]) -> bool:
        """Does e stay within the nominal quota of its team with these devices?"""
        quota, loads = self.quota(e.ask.team, self.devices[some[0]].model), self.loads()
        free_mb = sum(loads[uuid].free_mb for uuid in some)
        return quota.mb + (free_mb if self.whole(e.ask) else e.memory_mb) <= quota.nominal_mb

    def held_back(self, e: Entry, room_mb: float) -> bool:
        """Is its agent's cap all that is in the way?"""
        if e.memory_mb * e.ask.devices > room_mb:
            return True
        if self.by_model(e.ask):  # of each model
            return all(
                self.held_back(replace(e, ask=e.ask._replace(model=model)), self.room_of(e, model))
                for model in self.registered(e.memory_mb)
            )
        if not self.whole(e.ask) or self.fitting(e, room_mb):
            return False
        return bool(self.fitting(e, FOREVER_MS))

    def never_fits(self, e: Entry) -> str:
        """Return why nothing that is registered could ever hold it; '' when something could."""
        ask, known = e.ask, self.devices.values()
        if unknown := self.unknown(ask):
            return unknown
        groups = dict[tuple[str, str], list[int]]()
        for d in known:
            size_mb = d.total_mb - d.system_mb
            if self.suits(ask, d) and size_mb >= e.memory_mb:
                size_mb -= d.unleased_mb if d.unleased_mb <= d.idle_unleased_mb else 0
                groups.setdefault((d.host, d.model), []).append(size_mb)
        least = [sum(sorted(g)[: ask.devices]) for g in groups.values() if len(g) >= ask.devices]
        if not least:
            return "never_fits"
        return "agent_cap" if self.whole(ask) and min(least) > self.cap_mb(ask) else ""

    def cap_mb(self, ask: Ask) -> float:
        """MiB that a request may ever have by its agent's cap and its team's."""
        return min(self.team_most(ask)[0], self.policy["max_memory_per_agent_mb"])

    def team_most(self, ask: Ask) -> tuple[float, str]:
        """MiB that a request may ever have by its team's quotas, and the word for that limit."""
        of = self.team(ask.team)
        models = (self.registered() or [""]) if self.by_model(ask) else [ask.model]
        quotas = [self.quota(ask.team, model) for model in models]
        word = "*" if self.by_model(ask) else of.named(ask.model)
        return max(
            q.nominal_mb + q.borrow_mb for q in quotas
        ), f"most_mb@{word}" if word else "most_mb"

    def unknown(self, ask: Ask) -> str:
        """Name what a request asks and nothing that is registered has."""
        known = self.devices.values()
        if ask.model not in {"*", *(d.model for d in known)}:
            return "model_unknown"
        return "host_unknown" if ask.host not in {"*", *(d.host for d in known)} else ""

    def take(self, e: Entry, devices: tuple[str, ...], state: str, *, lent: bool = False) -> None:
        """Give e the devices: a share of one, or the whole of each; `lent`: for a known time."""
        self.accrue(e.ask.team)
        loads, whole = self.loads(), bool(devices) and self.whole(e.ask)
        e.held = tuple((uuid, loads[uuid].free_mb if whole else e.memory_mb) for uuid in devices)
        for uuid in () if lent else devices:
            if loads[uuid].reserved_for not in {"", e.token}:
                self.entries[loads[uuid].reserved_for].known_end_ms = 0
        alone = whole or any(self.devices[uuid].one_lease for uuid in devices)
        self.withdraw(e)
        e.state, e.reserved, e.reservation_mb, e.capped, e.whole = state, (), 0, "", alone

    # The queue.

    def queue(self, queue_id: str) -> list[Entry]:
        """Return the tokens of a queue, its head first."""
        found = [
            e
            for e in self.entries.values()
            if e.state == "waiting" and not e.capped and e.queue_id == queue_id
        ]
        return sorted(found, key=lambda e: (e.rank, e.token))

    def heads(self) -> list[Entry]:
        """The head of each queue."""
        waiting = [e for e in self.entries.values() if e.state == "waiting" and not e.capped]
        found: dict[str, Entry] = {}
        for e in sorted(waiting, key=lambda e: (e.rank, e.token)):
            found.setdefault(e.queue_id, e)
        return list(found.values())

    def due_offers(self) -> list[tuple[str, tuple[str, ...]]]:
        """S11, L1: heads that fit, with what each could be given."""
        return [
            (e.token, some)
            for e in self.heads()
            if self.sure(e)
            for some in self.fitting(e, self.room_of(e))
        ]

    def may_offer(self, e: Entry, devices: tuple[str, ...]) -> bool:
        """May e be offered these now?

        It is the head of its queue but for some whose agents are at their cap, or the devices are
        kept for it; and no head before it could have one of them now, alone or with others.
        """
        keeps = bool(set(devices) & set(e.reserved))
        for before in self.queue(e.queue_id):
            if (before.rank, before.token) >= (e.rank, e.token) or keeps:
                break
            if not self.held_back(before, self.room_of(before)):
                return False
        sooner = {
            uuid
            for f in self.heads()
            if f is not e and self.comes_first(f, e) and self.sure(f)
            for some in self.fitting(f, self.room_of(f))
            for uuid in some
        }
        options = self.fitting(e, self.room_of(e), others=True)
        return tuple(sorted(devices)) in options and not sooner & set(devices)

    def schedule(self) -> None:
        """Offer what can be had, to the head that is next."""
        self.set_heads_capped()
        while not self.shut and (pick := self.choose.offer(self)):
            token, devices = pick
            e = self.entries[token]
            demand(self.may_offer(e, devices), f"S11: {token} was offered {devices}")
            self.take(e, devices, "offered")
            e.due_ms, e.version = self.now + CLAIM_MS, self.policy["policy_version"]
            self.offers_made += 1
            self.set_heads_capped()

    def set_heads_capped(self) -> None:
        """Let heads that only their agent's cap holds back give way to those behind them."""
        found = [e for e in self.heads() if self.held_back(e, self.room_of(e))]
        self.held_back_once |= {e.token for e in found}
        caps = [e for e in found if self.may_be_capped(e) and self.choose.caps(e.token)]
        for e in caps:
            self.set_capped(e)
            self.capped_now += 1
            self.capped_once[e.token] = set()
        for token in self.capped_once.keys() & self.entries.keys():
            self.capped_once[token].add(self.least(self.entries[token])[1])
        if caps:
            self.set_heads_capped()

    def may_be_capped(self, e: Entry) -> bool:
        """Tell whether e gives way to those behind it; one for which leases end waits for these."""
        return self.has_more(e) and not e.preempts

    def set_capped(self, e: Entry, by: str = "") -> None:
        """Take it out of its queue; what is reserved for it is not, any more."""
        party = by or self.least(e)[1]
        self.cancel(e)
        e.capped = party

    def place(self, e: Entry) -> int:
        """Return the number of waiters ahead in its queue; -1: capped."""
        return -1 if e.capped else [x.token for x in self.queue(e.queue_id)].index(e.token)

    def poll(self, e: Entry) -> tuple[tuple[str, ...] | None, str]:
        """A waiter asks again: what it gets, or why not."""
        capped = e.capped
        self.check(e)
        room_mb = self.room_of(e)
        mates = [x for x in self.entries.values() if x.capped and x.capped == e.capped]
        first = min(mates, key=lambda x: (x.rank, x.token)) is e if capped else self.place(e) == 0
        nothing = None, "agent_cap" if capped else "no_capacity"
        if self.now < self.closed_until_ms or not first:
            return nothing
        options = self.fitting(e, room_mb)
        free = [some for some in options if not set(some) & set(e.reserved)]
        loose = self.choose.backlog or self.offers_made or e.reserved
        options = options if loose else self.best(e, free)
        devices = self.choose.grant(e.token, options) if options else None
        if devices is not None:
            return devices, ""
        demand(not options or self.choose.backlog, f"L1: {e.token} polls, fits, and gets nothing")
        if options:
            return nothing
        e.blind = False
        why = "agent_cap" if self.held_back(e, room_mb) else "no_capacity"
        # With work left, scripts may wait with its cap
        over = why == "agent_cap" and self.may_be_capped(e) and not self.choose.backlog
        if capped and not (why == "agent_cap" and self.has_more(e)):
            e.capped = ""
        elif capped:
            e.capped = self.least(e)[1]
            self.preempt(e)
        elif over:
            self.set_capped(e)
        elif not self.preempt(e):
            self.reserve(e)
        return None, why
