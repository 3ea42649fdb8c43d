"""Who may have what, and who is next: placement, the line, what is kept for whom."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from tests.model.entries import (
    CLAIM_MS,
    FOREVER_MS,
    KEEP_AFTER_MS,
    LOOKED_AT,
    Ask,
    Device,
    Entry,
    demand,
)  # fmt: skip
from tests.model.ledger import Ledger


@dataclass(slots=True)
class Line(Ledger):
    """A pool in which some wait."""

    def suits(self, ask: Ask, d: Device) -> bool:
        return ask.host in {"*", d.host} and ask.model in {"*", d.model}

    def whole(self, ask: Ask) -> bool:
        fractions = self.policy["allow_fractional_shares"]
        return bool(ask.exclusive) or ask.devices > 1 or not fractions

    def fitting(self, e: Entry, room_mb: int, *, others: bool = False) -> list[tuple[str, ...]]:
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
            mine = x.kept_for in {"", e.token}
            if not mine and not (others and e.rank <= self.entries[x.kept_for].rank):
                continue
            if whole and x.empty:
                groups.setdefault((d.host, d.model), []).append(uuid)
            elif not whole and not x.exclusive:
                found.append((uuid,))
        for group in groups.values():
            found += [
                some
                for some in combinations(sorted(group), e.ask.devices)
                if sum(loads[uuid].free_mb for uuid in some) <= room_mb
            ]
        return found

    def best(self, e: Entry, options: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Those that placement takes: most free, best fit, or the smallest of a host and model."""
        loads, least = self.loads(), dict[tuple[str, str], int]()
        free = {some: sum(loads[uuid].free_mb for uuid in some) for some in options}
        if not self.whole(e.ask):
            top = (min if e.ask.placement == "pack" else max)(free.values(), default=0)
            return [some for some in options if free[some] == top]
        of = {some: (self.devices[some[0]].host, self.devices[some[0]].model) for some in options}
        for some in options:
            least[of[some]] = min(free[some], least.get(of[some], free[some]))
        return [some for some in options if free[some] == least[of[some]]]

    def capped(self, e: Entry, room_mb: int) -> bool:
        """Is its agent's cap all that is in the way?"""
        if e.memory_mb * e.ask.devices > room_mb:
            return True
        if not self.whole(e.ask) or self.fitting(e, room_mb):
            return False
        return bool(self.fitting(e, FOREVER_MS))

    def unfit(self, e: Entry) -> str:
        """Why nothing that is registered could ever hold it; '' when something could."""
        ask, known = e.ask, self.devices.values()
        if ask.model not in {"*", *(d.model for d in known)}:
            return "model_unknown"
        if ask.host not in {"*", *(d.host for d in known)}:
            return "host_unknown"
        groups = dict[tuple[str, str], int]()
        for d in known:
            if self.suits(ask, d) and d.total_mb - d.reserve_mb >= e.memory_mb:
                groups[d.host, d.model] = groups.get((d.host, d.model), 0) + 1
        return "" if any(n >= ask.devices for n in groups.values()) else "never_fits"

    def take(self, e: Entry, devices: tuple[str, ...], state: str) -> None:
        """Give e the devices: a share of one, or the whole of each."""
        loads, whole = self.loads(), bool(devices) and self.whole(e.ask)
        e.held = tuple((uuid, loads[uuid].free_mb if whole else e.memory_mb) for uuid in devices)
        e.state, e.kept, e.parked, e.whole = state, (), False, whole

    # The line.

    def line(self, want: str) -> list[Entry]:
        """Who stands in a want, the first first."""
        found = [
            e
            for e in self.entries.values()
            if e.state == "waiting" and not e.parked and e.want == want
        ]
        return sorted(found, key=lambda e: (e.rank, e.token))

    def firsts(self) -> list[Entry]:
        """The first of each want."""
        waiting = [e for e in self.entries.values() if e.state == "waiting" and not e.parked]
        found: dict[str, Entry] = {}
        for e in sorted(waiting, key=lambda e: (e.rank, e.token)):
            found.setdefault(e.want, e)
        return list(found.values())

    def due_offers(self) -> list[tuple[str, tuple[str, ...]]]:
        """S11, L1: firsts that fit, with what each could be given."""
        return [
            (e.token, some)
            for e in self.firsts()
            if not e.blind
            for some in self.fitting(e, self.room(e.ask.agent))
        ]

    def may_offer(self, e: Entry, devices: tuple[str, ...]) -> bool:
        """Is it e's turn to be offered these?

        It is the first of its want but for some whose agents are at their cap, or the devices are
        kept for it; and no first before it could have one of them now, alone or with others.
        """
        keeps = bool(set(devices) & set(e.kept))
        for before in self.line(e.want):
            if (before.rank, before.token) >= (e.rank, e.token) or keeps:
                break
            if not self.capped(before, self.room(before.ask.agent)):
                return False
        sooner = {
            uuid
            for f in self.firsts()
            if f.rank < e.rank and not f.blind
            for some in self.fitting(f, self.room(f.ask.agent))
            for uuid in some
        }
        options = self.fitting(e, self.room(e.ask.agent), others=True)
        return tuple(sorted(devices)) in options and not sooner & set(devices)

    def serve(self) -> None:
        """Offer what can be had to who is next."""
        self.step_aside()
        while not self.shut and (pick := self.choose.offer(self)):
            token, devices = pick
            e = self.entries[token]
            demand(self.may_offer(e, devices), f"S11: {token} was offered {devices}")
            self.take(e, devices, "offered")
            e.due_ms, e.version = self.now + CLAIM_MS, self.policy["policy_version"]
            self.served += 1
            self.step_aside()

    def step_aside(self) -> None:
        """Firsts whose agent's cap is all that is in the way stand aside for those behind them."""
        found = [e for e in self.firsts() if self.capped(e, self.room(e.ask.agent))]
        self.capped_once |= {e.token for e in found}
        parks = [e for e in found if self.agent(e.ask.agent)[1] and self.choose.parks(e.token)]
        for e in parks:
            e.parked, e.kept = True, ()
            self.aside += 1
        if parks:
            self.step_aside()

    def place(self, e: Entry) -> int:
        """How many of its want are ahead; -1: parked."""
        return -1 if e.parked else [x.token for x in self.line(e.want)].index(e.token)

    def poll(self, e: Entry) -> tuple[tuple[str, ...] | None, str]:
        """A waiter asks again: what it gets, or why not."""
        parked, room_mb = e.parked, self.room(e.ask.agent)
        mates = [x for x in self.entries.values() if x.parked and x.ask.agent == e.ask.agent]
        first = min(mates, key=lambda x: (x.rank, x.token)) is e if parked else self.place(e) == 0
        nothing = None, "agent_cap" if parked else "no_capacity"
        if self.now < self.closed_until_ms or not first:
            return nothing
        options = self.fitting(e, room_mb)
        free = [some for some in options if not set(some) & set(e.kept)]
        loose = self.choose.backlog or self.served or e.kept
        options = options if loose else self.best(e, free)
        devices = self.choose.grant(e.token, options)
        if devices is not None:
            return devices, ""
        demand(not options or self.choose.backlog, f"L1: {e.token} polls, fits, and gets nothing")
        if options:
            return nothing
        e.blind = False
        why = "agent_cap" if self.capped(e, room_mb) else "no_capacity"
        has = self.agent(e.ask.agent)[1] > 0
        if why == "agent_cap" and has and not self.choose.backlog:  # else the scripts may wait
            e.parked, e.kept = True, ()
        elif parked and why != "agent_cap":
            e.parked = False
        elif not parked and self.now - e.joined_ms >= KEEP_AFTER_MS:
            self.keep(e)
        return None, why

    def keep(self, e: Entry) -> None:
        """L3: after half a minute a first is kept what could hold it."""
        held = [self.devices[uuid] for uuid in e.kept]
        if any(d.total_mb - d.reserve_mb < e.memory_mb for d in held):
            e.kept = ()
        if e.kept:
            return
        loads, groups = self.loads(), dict[tuple[str, str], list[str]]()
        for uuid, d in sorted(self.devices.items()):
            up = d.state == "ok" and not d.drained and not loads[uuid].kept_for
            if up and self.suits(e.ask, d) and d.total_mb - d.reserve_mb >= e.memory_mb:
                groups.setdefault((d.host, d.model), []).append(uuid)
        options = [s for g in groups.values() for s in combinations(g, e.ask.devices)]
        e.kept = self.choose.keep(e.token, options)
        demand(not e.kept or tuple(sorted(e.kept)) in options, f"L3: {e.token} keeps {e.kept}")
        few = len(self.devices) <= LOOKED_AT
        may = not options or not few or self.choose.backlog
        demand(e.kept or may, f"L3: nothing is kept for {e.token}")
