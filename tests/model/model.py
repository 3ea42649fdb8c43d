"""The pool as DESIGN.md and lua/README.md tell it, without Redis: what each verb may do.

Where they leave something open (which of equal devices, which of two wants first) the model asks a
`Chooser` and checks that what it chose is allowed: beside the scripts the choice is what they did,
in the explorer each one in turn. What is not allowed is `Broken`, by the name of the invariant.
Numbers are MiB and the pool's milliseconds, but `raw_us`, the server's clock.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple, Protocol

LEAP_MS, WINDOW_MS, LOOK_MS, FAILOVER_MS, FORGOT_MS = 10_000, 30_000, 100, 10_000, 60_000
POLL_MS, CLAIM_MS, KEEP_AFTER_MS, REVOKED_MS = 10_000, 10_000, 30_000, 60_000
FOREVER_MS, PRIORITY_US = 315_360_000_000, 60_000_000
REAP_DEVICES, IDLE_FOREIGN_MB, BACK_AT_ONCE, LOOKED_AT = 16, 512, 4, 4
POLICY = {
    "policy_version": 1, "safe_mode": 0, "max_memory_per_agent_mb": 1_048_576,
    "allow_fractional_shares": 1, "default_memory_mb": 2048, "expiry_grace_s": 5,
    "max_leases_per_agent": 256, "max_waiters_per_agent": 256,
}  # fmt: skip

TAKEN = {"active", "offered"}
Held = tuple[tuple[str, int], ...]
Reply = list[Any]


class Broken(AssertionError):
    """What the scripts did is not allowed."""


def demand(holds: object, what: str) -> None:
    """Raise what is broken unless it holds."""
    if not holds:
        raise Broken(what)


class Ask(NamedTuple):
    """What an acquire asks for: all that a repeat must say again."""

    agent: str = "ann"
    memory_mb: int = 900
    devices: int = 1
    exclusive: int = 0
    ttl_ms: int = 30_000
    max_hold_ms: int = 0
    priority: int = 0
    host: str = "*"
    model: str = "*"
    placement: str = "spread"
    on_unavailable: str = "refuse"


@dataclass(slots=True)
class Device:
    """A GPU; what is promised on it is the entries' to say."""

    host: str
    model: str
    total_mb: int = 0
    reserve_mb: int = 0
    state: str = "unknown"
    simulated: bool = True
    drained: bool = False
    foreign_mb: int = 0
    withheld_mb: int = 0
    lingering_mb: int = 0
    sampled_ms: int = 0
    withheld_at_ms: int = 0
    cooled_at_ms: int = 0


@dataclass(slots=True)
class Entry:
    """A token that waits, was offered something, holds it, or cools.

    `memory_mb` is with the policy's default, `whole`: it was given all of its devices, `blind`: the
    policy changed, and nobody has looked at it since.
    """

    token: str
    ask: Ask
    owner: str
    memory_mb: int
    state: str = "waiting"
    due_ms: int = 0
    held: Held = ()
    fence: int = 0
    expires_at_ms: int = 0
    hold_until_ms: int = 0
    revoked: bool = False
    outcome: str = ""
    reason: str = ""
    rank: int = 0
    joined_ms: int = 0
    parked: bool = False
    kept: tuple[str, ...] = ()
    version: int = 0
    whole: bool = False
    blind: bool = False

    @property
    def want(self) -> str:
        """With whom it waits: host, model and shape."""
        ask = self.ask
        whole = ask.exclusive or ask.devices > 1
        size = ask.devices if whole else self.memory_mb
        return f"{ask.host}/{ask.model}/{'x' if whole else 'm'}{(size - 1).bit_length()}"


class Load(NamedTuple):
    """What is promised on a device, and what of it is left."""

    free_mb: int
    reserved_mb: int
    leases: int
    exclusive: str
    kept_for: str
    up: bool
    empty: bool


class Chooser(Protocol):
    """Who decides what the protocol leaves open."""

    backlog: bool
    """Whether serving may have stopped at its bound, so that somebody else comes first."""

    again: bool
    """Whether a request was told to come again after reaping."""

    def grant(self, token: str, options: list[tuple[str, ...]]) -> tuple[str, ...] | None:
        """Which of these a request gets; None when there is nothing, or in a backlog."""

    def offer(self, model: Model) -> tuple[str, tuple[str, ...]] | None:
        """Who is offered which devices next; None when nobody is."""

    def parks(self, token: str) -> bool:
        """Whether who may stand aside for its agent's cap does."""

    def keep(self, token: str, options: list[tuple[str, ...]]) -> tuple[str, ...]:
        """Which of these are kept for a waiter."""


class Claim(NamedTuple):
    """What a holder knows of a lease that its pool has forgotten."""

    epoch: int
    ask: Ask
    held: Held


@dataclass(slots=True)
class Model:
    """A pool. `exists` is False until a report makes it; `another` says that the server is another
    than the one of the last look."""

    choose: Chooser
    raw_us: int = 0
    exists: bool = False
    another: bool = False
    epoch: int = 0
    fence: int = 0
    offset_ms: int = 0
    now: int = 0
    looked_ms: int = 0
    window_until_ms: int = 0
    leap_from_ms: int = 0
    closed_until_ms: int = 0
    lost_us: int = 0
    more: int = 0
    policy: dict[str, int] = field(default_factory=lambda: dict(POLICY))
    devices: dict[str, Device] = field(default_factory=dict)
    hosts: dict[str, int | None] = field(default_factory=dict)
    drained_hosts: set[str] = field(default_factory=set)
    entries: dict[str, Entry] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    served: int = 0
    aside: int = 0
    capped_once: set[str] = field(default_factory=set)

    def copy(self) -> Model:
        """The same pool, to go another way."""
        other = copy(self)
        other.policy, other.hosts = dict(self.policy), dict(self.hosts)
        other.devices = {uuid: copy(d) for uuid, d in self.devices.items()}
        other.entries = {name: copy(e) for name, e in self.entries.items()}
        other.drained_hosts, other.done = set(self.drained_hosts), dict(self.done)
        return other

    # The clock.

    def open(self) -> Reply | None:
        """Read the clock. The refusal when there is no pool."""
        self.more = self.served = self.aside = 0
        self.capped_once = set()
        if not self.exists:
            return ["REFUSED", "not_ready", ""]
        last, now = self.now, self.raw_us // 1000 + self.offset_ms
        if now < last:
            self.offset_ms, now, self.looked_ms = self.offset_ms + last - now, last, 0
        elif now - last > LEAP_MS and now >= self.window_until_ms:
            self.window_until_ms, self.leap_from_ms = now + WINDOW_MS, last
        self.now = now
        if now - self.looked_ms > LOOK_MS:
            self.looked_ms = now
            if self.another:
                self.another = False
                self.close(now + FAILOVER_MS, self.raw_us)
                if now >= self.window_until_ms:
                    self.window_until_ms, self.leap_from_ms = now + FAILOVER_MS, last
        return None

    def close(self, until_ms: int, lost_us: int) -> None:
        """Memory was lost: grant nothing until then, and let holders bring back what they have."""
        self.lost_us = max(self.lost_us, lost_us)
        self.closed_until_ms = max(self.closed_until_ms, until_ms)

    def over(self, at_ms: int) -> bool:
        """Is what ends then over, and may it be taken back? In a window only what was due before it."""
        late = self.now > at_ms
        return late and (self.now >= self.window_until_ms or at_ms <= self.leap_from_ms)

    @property
    def safe(self) -> bool:
        return self.policy["safe_mode"] == 1

    @property
    def shut(self) -> bool:
        return self.safe or self.now < self.closed_until_ms

    # The ledger.

    def loads(self) -> dict[str, Load]:
        """What is left of each device: total - reserve - reserved - withheld - foreign."""
        reserved, leases = dict.fromkeys(self.devices, 0), dict.fromkeys(self.devices, 0)
        exclusive, kept_for = dict.fromkeys(self.devices, ""), dict.fromkeys(self.devices, "")
        for e in self.entries.values():
            if e.state in TAKEN:
                for uuid, mb in e.held:
                    reserved[uuid], leases[uuid] = reserved[uuid] + mb, leases[uuid] + 1
                    if e.whole:
                        exclusive[uuid] = e.token
            for uuid in e.kept:
                kept_for[uuid] = e.token
        found = {}
        for uuid, d in self.devices.items():
            used = reserved[uuid] + d.withheld_mb + d.foreign_mb
            free = d.total_mb - d.reserve_mb - used
            up = free > 0 and d.state == "ok" and not d.drained
            nobody = leases[uuid] == 0 == d.withheld_mb and d.foreign_mb <= IDLE_FOREIGN_MB
            found[uuid] = Load(
                free,
                reserved[uuid],
                leases[uuid],
                exclusive[uuid],
                kept_for[uuid],
                up,
                up and nobody,
            )
        return found

    def agent(self, name: str) -> tuple[int, int, int]:
        """MiB and leases that an agent has, offers included, and how many of its requests wait."""
        mb = leases = waiters = 0
        for e in self.entries.values():
            if e.ask.agent == name:
                if e.state in TAKEN:
                    mb, leases = mb + sum(m for _, m in e.held), leases + 1
                waiters += e.state == "waiting"
        return mb, leases, waiters

    def room(self, name: str) -> int:
        """MiB that the policy leaves an agent; none when it has as many leases as it may."""
        mb, leases, _ = self.agent(name)
        may = leases < self.policy["max_leases_per_agent"]
        return self.policy["max_memory_per_agent_mb"] - mb if may else 0

    def end(self, e: Entry, outcome: str) -> None:
        """End a lease without its holder's word: on real devices its memory is withheld."""
        real = any(not self.devices[uuid].simulated for uuid, _ in e.held)
        grace_ms = self.policy["expiry_grace_s"] * 1000 if real else 0
        if not grace_ms:
            return self.bury(e, outcome)
        for uuid, mb in e.held:
            d = self.devices[uuid]
            d.withheld_mb, d.withheld_at_ms = d.withheld_mb + mb, self.now
        e.state, e.outcome = "cooling", outcome
        e.expires_at_ms, e.due_ms = self.now, self.now + grace_ms
        return self.unpark(e.ask.agent)

    def bury(self, e: Entry, outcome: str) -> None:
        """It is over: its token is refused from now on; an empty outcome leaves no trace."""
        del self.entries[e.token]
        if outcome:
            self.done[e.token] = outcome
        if e.state in TAKEN:
            self.unpark(e.ask.agent)

    def unpark(self, agent: str) -> None:
        """An agent's sum fell: who fits under its cap again stands where it stood."""
        mine = [e for e in self.entries.values() if e.parked and e.ask.agent == agent]
        room_mb = self.room(agent) if mine else 0
        for e in sorted(mine, key=lambda e: (e.rank, e.token))[:BACK_AT_ONCE]:
            room_mb -= e.memory_mb * e.ask.devices
            if room_mb < 0:
                return
            e.parked = False

    def cool(self, e: Entry) -> None:
        """The grace is over: what is still used by what was its processes is a stranger's now."""
        for uuid, mb in e.held:
            d = self.devices[uuid]
            if e.expires_at_ms > d.cooled_at_ms:
                stays = min(mb, d.lingering_mb)
                d.withheld_mb, d.foreign_mb = d.withheld_mb - mb, d.foreign_mb + stays
                d.lingering_mb -= stays
        self.bury(e, e.outcome)

    def unkeep(self, uuid: str) -> None:
        """A device is kept for nobody; who kept it keeps none of the others either."""
        for e in self.entries.values():
            if uuid in e.kept:
                e.kept = ()

    # Time.

    def agenda(self) -> list[tuple[int, str]]:
        """Everything's next end, the first first."""
        ends = [(e.due_ms, e.token) for e in self.entries.values()]
        return sorted(ends + [(at, f"host:{h}") for h, at in self.hosts.items() if at is not None])

    def settle(self, member: str) -> int:
        """End the present state of one; how many devices that touched, at least 1."""
        if member.startswith("host:"):
            host = member[5:]
            self.hosts[host] = None
            mine = [uuid for uuid, d in self.devices.items() if d.host == host]
            for uuid in mine:
                self.unkeep(uuid)
                self.devices[uuid].state = "away"
            return max(1, len(mine))
        e = self.entries[member]
        if e.state == "active":
            self.end(e, "revoked" if e.revoked else "expired")
        elif e.state == "cooling":
            self.cool(e)
        else:
            self.bury(e, "lapsed")
        return max(1, len(e.held))

    def catch_up(self, named: str = "") -> None:
        """Take back what is over, first what the call names, and hand it on."""
        left = REAP_DEVICES
        if named in self.entries and self.over(self.entries[named].due_ms):
            left -= self.settle(named)
        for at_ms, member in self.agenda():
            if not self.over(at_ms):
                break
            if left <= 0:
                self.more = 1
                break
            left -= self.settle(member)
        self.serve()

    # Who may have what.

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
            for some in combinations(sorted(group), e.ask.devices):
                if sum(loads[uuid].free_mb for uuid in some) <= room_mb:
                    found.append(some)
        return found

    def best(self, e: Entry, options: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Those that placement may take: most free, best fit, or the smallest of a host and model."""
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

        It is the first of its want but for some whose agents are at their cap, or the devices are kept
        for it; and of one device no first before it could have the same.
        """
        keeps = bool(set(devices) & set(e.kept))
        for before in self.line(e.want):
            if (before.rank, before.token) >= (e.rank, e.token) or keeps:
                break
            if not self.capped(before, self.room(before.ask.agent)):
                return False
        sooner = {
            some
            for f in self.firsts()
            if f.rank < e.rank and not f.blind and len(devices) == 1
            for some in self.fitting(f, self.room(f.ask.agent))
        }
        options = self.fitting(e, self.room(e.ask.agent), others=True)
        return tuple(sorted(devices)) in options and devices not in sooner

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
        if why == "agent_cap" and has:
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
        demand(e.kept or not options or not few, f"L3: nothing is kept for {e.token}")

    # The verbs.

    def acquire(self, token: str, ask: Ask, wait_ms: int = 0, owner: str = "") -> Reply:
        """Ask for a lease; ask again, poll, claim."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        if not e and token in self.done:
            return ["LOST", self.done[token]]
        if e and e.state == "cooling":
            return ["LOST", e.outcome]
        if e and (e.ask != ask or owner not in {"", e.owner}):
            return ["CONFLICT"]
        if e and e.state == "active":
            return self.granted(e)
        if e and e.state == "waiting" and wait_ms and not self.safe and self.place(e) > 0:
            e.due_ms = self.now + POLL_MS
            return ["WAITING", self.place(e)]
        if e and e.state == "offered":
            if not self.shut and e.version == self.policy["policy_version"]:
                return self.grant(e, tuple(uuid for uuid, _ in e.held), "")
            e.state, e.held, e.whole = "waiting", (), False
            self.unpark(ask.agent)
        new = e is None
        if not e:
            memory_mb = ask.memory_mb or self.policy["default_memory_mb"]
            rank = self.now * 1000 + self.raw_us % 1000 - ask.priority * PRIORITY_US
            e = Entry(token, ask, owner, memory_mb, rank=rank, joined_ms=self.now)
        devices, why = self.decide(e, new=new)
        if devices is not None:
            return self.grant(e, devices, "")
        return self.denied(e, why, wait_ms, new=new)

    def decide(self, e: Entry, *, new: bool) -> tuple[tuple[str, ...] | None, str]:
        """What it gets now, or why not."""
        mb, leases, _ = self.agent(e.ask.agent)
        room_mb = self.policy["max_memory_per_agent_mb"] - mb
        if self.safe:
            return None, "safe_mode"
        if not new:
            devices, why = self.poll(e)
            return devices, "closed" if self.shut else why
        if self.shut:
            return None, "closed"
        if leases >= self.policy["max_leases_per_agent"]:
            return None, "limit"
        if self.line(e.want):
            return None, "no_capacity"
        options = self.fitting(e, room_mb)
        loose = self.choose.backlog or self.served
        right = options if loose else self.best(e, options)
        devices = self.choose.grant(e.token, right)
        if devices is not None:
            return devices, ""
        demand(not right or self.choose.backlog, f"S11: {e.token} fits and gets nothing")
        return None, "agent_cap" if not right and self.capped(e, room_mb) else "no_capacity"

    def denied(self, e: Entry, why: str, wait_ms: int, *, new: bool) -> Reply:
        """No device: it waits, falls back to the CPU, or is refused."""
        ask, cap_mb = e.ask, self.policy["max_memory_per_agent_mb"]
        _, leases, waiters = self.agent(ask.agent)
        never = ""
        if why in {"no_capacity", "agent_cap"}:
            ahead = not new and self.place(e) > 0
            never = "" if ahead else self.unfit(e)
            if not never and e.memory_mb * ask.devices > cap_mb:
                never = "agent_cap"
            why = never or why
            if why == "no_capacity" and ask.host in self.drained_hosts:
                why = "draining"
        if wait_ms and not never and not self.safe and why != "limit":
            if not new or waiters < self.policy["max_waiters_per_agent"]:
                e.parked = e.parked if not new else why == "agent_cap" and leases > 0
                self.entries[e.token] = e
                e.due_ms = self.now + POLL_MS
                return ["WAITING", self.place(e)]
            why = "limit"
        if self.choose.again:
            demand(not self.safe and why != "closed", "AGAIN, though nothing can be had")
            return ["AGAIN"]
        if ask.on_unavailable == "cpu" and why not in {"safe_mode", "closed", "limit"}:
            return self.grant(e, (), why)
        self.entries.pop(e.token, None)
        return ["REFUSED", why, ""]

    def grant(self, e: Entry, devices: tuple[str, ...], why: str) -> Reply:
        """The devices, or the CPU, are e's."""
        if e.state == "waiting":
            self.take(e, devices, "active")
        e.state, e.reason = "active", why
        self.fence = e.fence = max(self.fence + 1, self.raw_us)
        e.expires_at_ms = self.now + (e.ask.ttl_ms or FOREVER_MS)
        if e.ask.max_hold_ms:
            e.hold_until_ms = self.now + e.ask.max_hold_ms
            e.expires_at_ms = min(e.expires_at_ms, e.hold_until_ms)
        e.due_ms = e.expires_at_ms
        self.entries[e.token] = e
        return self.granted(e)

    def granted(self, e: Entry) -> Reply:
        left = max(0, e.expires_at_ms - self.now)
        return ["GRANTED", e.fence, e.expires_at_ms, left, e.reason, sorted(e.held)]

    def renew(self, token: str, fence: int = 0, ttl_ms: int | None = None, owner: str = "",
              claim: Claim | None = None) -> Reply:  # fmt: skip
        """Keep a lease; with a `claim`, after UNKNOWN, have it adopted."""
        if refusal := self.open():
            return refusal
        if claim and claim.epoch < self.epoch:
            self.close(self.epoch // 1000 + FORGOT_MS, self.epoch)
        self.catch_up(token)
        e = self.entries.get(token)
        if not e and token in self.done:
            return ["LOST", self.done[token]]
        if claim and (not e or e.state in {"waiting", "offered"}):
            if answer := self.adopt(token, fence, claim):
                return answer
            e = self.entries[token]
        if not e or owner not in {"", e.owner}:
            return ["UNKNOWN"]
        if e.state == "cooling":
            return ["LOST", e.outcome]
        if e.state != "active":
            return ["UNKNOWN"]
        if fence not in {0, e.fence}:
            return ["LOST", "superseded"]
        if e.revoked:
            self.end(e, "revoked")
            return ["LOST", "revoked"]
        ttl_ms = e.ask.ttl_ms if ttl_ms is None else ttl_ms
        until_ms = self.now + (ttl_ms or FOREVER_MS)
        if e.hold_until_ms:
            until_ms = min(until_ms, e.hold_until_ms)
        e.expires_at_ms = e.due_ms = max(until_ms, e.expires_at_ms)
        return ["RENEWED", e.expires_at_ms, max(0, e.expires_at_ms - self.now), ""]

    def adopt(self, token: str, fence: int, claim: Claim) -> Reply | None:
        """Take up a lease that was forgotten, if there is room by capacity alone. Why not, or None."""
        ask, held = claim.ask, claim.held
        if fence > self.lost_us + FAILOVER_MS * 1000:
            return ["UNKNOWN"]
        hold_until_ms = fence // 1000 + ask.max_hold_ms if ask.max_hold_ms else 0
        if token in self.entries:
            self.bury(self.entries[token], "")
        if hold_until_ms and hold_until_ms < self.now:
            self.done[token] = "expired"
            return ["LOST", "expired"]
        alone, loads = ask.exclusive == 1 or ask.devices != 1, self.loads()
        for uuid, mb in held:
            d, x = self.devices.get(uuid), loads.get(uuid)
            room_mb = (
                d.total_mb - d.reserve_mb - x.reserved_mb if d and x and not x.exclusive else 0
            )
            if room_mb < mb or (alone and x and x.leases):
                if self.now < self.closed_until_ms:
                    return ["AGAIN"]
                self.done[token] = "superseded"
                return ["LOST", "superseded"]
        for uuid, mb in held:
            self.unkeep(uuid)
            if fence < self.epoch:
                self.devices[uuid].foreign_mb = max(0, self.devices[uuid].foreign_mb - mb)
        self.fence = max(self.fence, fence)
        self.entries[token] = Entry(
            token, ask, "", ask.memory_mb, "active", self.now, held, fence, self.now,
            hold_until_ms, whole=alone and bool(held),
        )  # fmt: skip
        return None

    def release(self, token: str, plant: int = 1, owner: str = "") -> Reply:
        """Give it back, or leave the line; S6: an unknown token is refused from now on."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        if not e and token in self.done:
            return ["ALREADY", self.done[token]]
        if not e:
            if plant:
                self.done[token] = "released"
            return ["UNKNOWN"]
        if owner not in {"", e.owner}:
            return ["UNKNOWN"]
        if e.state == "cooling":
            return ["ALREADY", e.outcome]
        self.bury(e, "released" if e.state == "active" else "left")
        return ["RELEASED"]

    def revoke(self, token: str, force: int = 0) -> Reply:
        """An operator ends it: within a minute, or now."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        if not e:
            return ["ALREADY", self.done[token]] if token in self.done else ["UNKNOWN"]
        if e.state == "cooling":
            return ["ALREADY", e.outcome]
        if e.state != "active":
            self.bury(e, "revoked")
            return ["REVOKED", self.now]
        if force:
            self.end(e, "revoked")
            return ["REVOKED", self.now]
        e.revoked = True
        e.expires_at_ms = e.due_ms = min(e.expires_at_ms, self.now + REVOKED_MS)
        return ["REVOKED", e.expires_at_ms]

    def reap(self) -> Reply:
        """Take back what is over."""
        if refusal := self.open():
            return refusal
        self.catch_up()
        return ["REAPED"]

    def drain(self, what: str, name: str, drained: int) -> Reply:
        """A device or a host takes no new leases, or takes them again."""
        if refusal := self.open():
            return refusal
        if name not in (self.hosts if what == "host" else self.devices):
            return ["REFUSED", f"{what}_unknown", name]
        self.catch_up()
        ids = [u for u, d in self.devices.items() if (d.host if what == "host" else u) == name]
        if what == "host":
            (self.drained_hosts.add if drained else self.drained_hosts.discard)(name)
        for uuid in ids:
            self.unkeep(uuid)
            self.devices[uuid].drained = bool(drained)
        return ["DRAINED" if drained else "UNDRAINED", len(ids)]

    def set_policy(self, **fields: int) -> Reply:
        """Change what may be leased; under SAFE_MODE only that itself."""
        if refusal := self.open():
            return refusal
        if self.safe and not (fields.get("safe_mode") == 0 or fields == {"safe_mode": 1}):
            return ["REFUSED", "safe_mode", ""]
        self.catch_up()
        self.policy |= fields
        self.policy["policy_version"] += 1
        for e in self.entries.values():
            e.blind = True
        return ["POLICY", self.policy["policy_version"]]

    def report(self, host: str, devices: dict[str, dict[str, Any]], deadline_ms: int = 15_000,
               sampled_ms: int = 0, epoch: int = 0) -> Reply:  # fmt: skip
        """A host says what it has; only this makes a pool."""
        if not self.exists:
            self.exists, self.epoch, self.now = True, self.raw_us, self.raw_us // 1000
        self.open()
        if epoch and epoch < self.epoch:
            self.close(self.epoch // 1000 + FORGOT_MS, self.epoch)
        self.catch_up()
        for uuid, said in devices.items():
            self.accept(host, uuid, said, sampled_ms)
        self.hosts[host] = self.now + deadline_ms
        return ["REPORTED"]

    def accept(self, host: str, uuid: str, said: dict[str, Any], sampled_ms: int) -> None:
        """A device as its host says it."""
        d = self.devices.get(uuid)
        moved = d is None or d.host != host
        d = d or self.devices.setdefault(uuid, Device(host, said["model"]))
        if moved or d.model != said["model"] or said["state"] != "ok":
            self.unkeep(uuid)
        d.drained = d.drained or (moved and host in self.drained_hosts)
        d.host, d.model, d.state = host, said["model"], said["state"]
        d.total_mb, d.reserve_mb = said["total_mb"], said["reserve_mb"]
        d.simulated = bool(said["simulated"])
        if "lingering_mb" in said:
            d.lingering_mb = said["lingering_mb"] or 0
        self.foreign(uuid, said, sampled_ms)

    def foreign(self, uuid: str, said: dict[str, Any], sampled_ms: int) -> None:
        """Memory that is used by others than our leases: S1, a stale sample can only refuse."""
        d, reserved_mb = self.devices[uuid], self.loads()[uuid].reserved_mb
        number = {name: value for name, value in said.items() if value != ""}
        used, outside = number.get("used_mb"), number.get("outside_mb")
        lingering = number.get("lingering_mb", 0)
        most = used if outside is None else outside + max(0, lingering - d.withheld_mb)
        if most is None:
            return

        def least() -> int:
            if outside is not None:
                return most - number.get("unclaimed_mb", 0)
            return used - reserved_mb - d.withheld_mb

        foreign_mb = max(d.foreign_mb, least())
        if sampled_ms >= d.sampled_ms:
            gone = used is not None and used <= reserved_mb + d.foreign_mb
            if outside is not None:
                gone = lingering == 0 and (gone or number.get("uncertain_mb", 0) == 0)
            if d.withheld_mb and gone and sampled_ms > d.withheld_at_ms:
                d.withheld_mb, d.cooled_at_ms = 0, d.withheld_at_ms
            foreign_mb = min(most, max(d.foreign_mb, least()))
            d.sampled_ms = sampled_ms
        d.foreign_mb = max(0, foreign_mb)
