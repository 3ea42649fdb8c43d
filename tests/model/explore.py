"""Every life of a small world, breadth first, in the model: two devices, three clients.

Calls arrive in any order, twice or never, replies are lost, clients die, and a replica that lacks
the last calls takes over. The clients are honest: who still believes in a lease when memory was
lost says so before the pool opens again, or is dead; who has given its lease back, or was told that
it ended, believes no late answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.model.entries import Ask, Broken, Held, Reply, demand
from tests.model.model import Model
from tests.model.pair import START_US
from tests.model.recovery import Claim
from tests.model.world import DEVICE, token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.world import Step

ASKS = (
    Ask("ann", 600, ttl_ms=20_000),
    Ask("bob", 500, exclusive=1, ttl_ms=20_000),
    Ask("cy", 500, devices=2, ttl_ms=20_000, priority=1),
)
WAIT_MS = 60_000
CALLS = {"acquire": 2, "renew": 1, "release": 1, "recover": 1}
"""Most arrivals of each call of a client."""

EVENTS = {"time": 3, "replicate": 1, "failover": 1}
DEVICES = {"g0": DEVICE | {"simulated": 0}, "g1": DEVICE | {"index": 1}}
DAY_MS = 86_400_000


class Client(NamedTuple):
    """A client's belief, and its calls that may still arrive.

    `over`: the pool has told it so, and must not take it back while it remembers. `done`: it has
    given up its lease, whatever the pool may forget.
    """

    left: tuple[int, ...] = tuple(CALLS.values())
    fence: int = 0
    held: Held = ()
    ends_ms: int = 0
    granted: bool = False
    over: bool = False
    heard: bool = True
    done: bool = False


@dataclass(slots=True)
class State:
    """A world, and the steps that lead to it."""

    model: Model
    clients: tuple[Client, ...] = (Client(),) * len(ASKS)
    left: tuple[int, ...] = tuple(EVENTS.values())
    replica: Model | None = None
    highest: int = 0
    path: tuple[Step, ...] = ()


@dataclass
class Each:
    """A chooser that goes each way in turn: `script` says which, `widths` how many there were."""

    script: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    backlog: bool = False
    again: bool = False
    pages: int = 0

    def _one(self, options: list[Any]) -> Any:
        at = len(self.widths)
        self.widths.append(len(options))
        return options[self.script[at] if at < len(self.script) else 0]

    def grant(self, name: str, options: list[tuple[str, ...]]) -> tuple[str, ...] | None:
        return self._one(options) if options else None

    def offer(self, model: Model) -> tuple[str, tuple[str, ...]] | None:
        may = [(name, some) for name, some in model.due_offers()
               if model.may_offer(model.entries[name], some)]  # fmt: skip
        return self._one(may) if may else None

    def later(self, name: str) -> bool:
        return False

    def caps(self, name: str) -> bool:
        return True

    def preempt(self, name: str) -> None:
        """No lease ends for another: each waits too briefly."""

    def keep(self, name: str, options: list[tuple[str, ...]]) -> tuple[str, ...]:
        return self._one(options) if options else ()


def beginning() -> State:
    """Both devices are there, and nobody has asked."""
    model = Model(Each(), START_US)
    model.report("h0", DEVICES, deadline_ms=DAY_MS)
    step = [0, "report", {"host": "h0", "devices": DEVICES, "deadline_ms": DAY_MS}]
    return State(model, path=(step,))


def moves(state: State) -> Iterator[tuple[str, int, Step]]:
    """Return the possible next steps: the kind, the subject, and as a step of a life."""
    for who, client in enumerate(state.clients):
        for call, left in zip(CALLS, client.left, strict=True):
            recovers = call == "recover"
            if not left or (recovers and (not client.fence or client.over or state.left[2])):
                continue
            args: dict[str, Any] = {"number": who}
            if call == "acquire":
                args |= {"ask": ASKS[who]._asdict(), "wait_ms": WAIT_MS}
                yield "unheard", who, [0, call, args | {"lost": True}]
            yield call, who, [0, call, args]
    if state.left[0]:
        ends = [at_ms for at_ms, name in state.model.deadlines() if not name.startswith("host:")]
        after_ms = max(1, ends[0] + 1 - state.model.now) if ends else 1000
        yield "time", 0, [0, "time", {"us": after_ms * 1000}]
    if state.left[1]:
        yield "replicate", 0, [0, "replicate", {}]
    if state.left[2] and state.replica:
        yield "failover", 0, [0, "failover", {"us": 1_000_000}]


def after(state: State, what: str, who: int, step: Step) -> Iterator[State]:
    """Each state that a move may lead to."""
    script: list[int] = []
    while True:
        chooser = Each(script)
        yield _moved(state, chooser, what, who, step)
        taken = [*script, *[0] * (len(chooser.widths) - len(script))]
        while taken and taken[-1] + 1 >= chooser.widths[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        script = [*taken[:-1], taken[-1] + 1]


def _moved(state: State, chooser: Each, what: str, who: int, step: Step) -> State:
    """One of them. What it breaks is told with the life that leads to it."""
    new = replace(state, path=(*state.path, step))
    try:
        return _move(new, state, chooser, what, who, step)
    except Broken as broken:
        life = "\n".join(map(str, new.path))
        raise Broken(f"{broken}, after\n{life}") from None


def _move(new: State, state: State, chooser: Each, what: str, who: int, step: Step) -> State:
    if what in EVENTS:
        at = list(EVENTS).index(what)
        new.left = tuple(n - (i == at) for i, n in enumerate(state.left))
        return _event(new, what, step)
    new.model = model = state.model.copy()
    model.choose = chooser
    client, name = state.clients[who], token(who)
    call = "acquire" if what == "unheard" else what
    at = list(CALLS).index(call)
    client = client._replace(left=tuple(n - (i == at) for i, n in enumerate(client.left)))
    if call == "acquire":
        reply = model.acquire(name, ASKS[who], WAIT_MS)
    elif call == "release":
        reply = model.release(name)
    elif call == "renew":
        reply = model.renew(name, client.fence)
    else:
        reply = model.renew(name, client.fence, claim=Claim(model.epoch, ASKS[who], client.held))
    model.schedule()
    new.highest, client = _heard(state, client, name, reply, model.now, lost=what == "unheard")
    new.clients = tuple(client if i == who else c for i, c in enumerate(state.clients))
    check(new)
    return new


def _heard(
    state: State, client: Client, name: str, reply: Reply, now: int, *, lost: bool
) -> tuple[int, Client]:
    """Let a client take a reply, and check that it may be told so: S3, S4, S6, S7."""
    tag, highest = reply[0], state.highest
    known = {e.fence for e in state.model.entries.values()} | {client.fence}
    if tag in {"GRANTED", "RENEWED"}:
        demand(not client.over, f"S4: {name} is {tag} after its end")
    if tag == "GRANTED":
        if reply[1] not in known:
            demand(reply[1] > highest, f"S3: the fence of {name} turned back")
            demand(not client.granted, f"S6: {name} was granted twice")
            highest = reply[1]
        client = client._replace(granted=True)
        if not lost and not client.done:
            client = client._replace(
                fence=reply[1], held=tuple(reply[5]), ends_ms=reply[2], heard=True
            )
    elif tag == "RENEWED":
        demand(reply[1] >= client.ends_ms or not client.fence, f"S7: {name} was shortened")
        ends_ms = reply[1] if client.fence and not client.done else 0
        client = client._replace(ends_ms=ends_ms, heard=True)
    elif tag == "LOST" and reply[1] == "expired" and client.heard:
        demand(client.ends_ms < now, f"S7: {name} ended early")
    if tag in {"RELEASED", "ALREADY", "LOST"} or (tag == "UNKNOWN" and not client.fence):
        over = tag != "UNKNOWN"
        client = client._replace(ends_ms=0, over=client.over or over, done=client.done or over)
    return highest, client


def _event(new: State, what: str, step: Step) -> State:
    if what == "replicate":
        new.replica = new.model.copy()
        return new
    raw_us = new.model.raw_us + step[2]["us"]
    if what == "failover" and new.replica:
        new.model = new.replica.copy()
        new.model.another = True
        new.model.raw_us = max(raw_us, new.highest + step[2]["us"])
        new.clients = tuple(
            c._replace(granted=False, over=False, heard=False, left=(*c.left[:3], 2))
            for c in new.clients
        )
        return new
    new.model = new.model.copy()
    new.model.raw_us = raw_us
    if any(not c.heard for c in new.clients):  # who has not spoken by now is dead
        new.clients = tuple(c if c.heard else c._replace(ends_ms=0, fence=0) for c in new.clients)
    return new


def check(state: State) -> None:
    """Check the invariants of every state."""
    model = state.model
    for uuid, x in model.loads().items():
        d = model.devices[uuid]
        demand(x.leased_mb <= d.total_mb - d.system_mb, f"S1: {uuid} is over-full")
        demand(not x.exclusive or x.leases == 1, f"S1: {x.exclusive} is not alone on {uuid}")
    for e in model.entries.values():
        demand(not model.ended(e.token), f"S4: {e.token} is over and there")
        whole = len(e.held) in {0, e.ask.devices}
        demand(whole, f"S5: {e.token} has {e.held}")
    demand(
        not model.due_offers() or model.shut, "S11: somebody could be given something, and waits"
    )
    now = model.raw_us // 1000 + model.offset_ms
    trusted = [(i, c) for i, c in enumerate(state.clients) if c.ends_ms >= now]
    for uuid in model.devices:
        mine = [(ASKS[i], c) for i, c in trusted if uuid in dict(c.held)]
        alone = any(ask.exclusive or ask.devices > 1 for ask, _ in mine)
        demand(not alone or len(mine) == 1, f"S1: two clients trust {uuid}")
        mb = sum(dict(c.held)[uuid] for _, c in mine)
        demand(mb <= model.devices[uuid].total_mb, f"S1: clients trust {mb} MiB of {uuid}")


def quiet(state: State) -> None:
    """L2, L5: when nobody does anything any more, all comes back."""
    model = state.model.copy()
    model.choose = Each()
    for _ in range(12):
        model.raw_us += 9_000_000
        model.reap()
        model.schedule()
    model.raw_us += 40_000_000
    model.reap()
    demand(not model.entries, f"L5: {sorted(model.entries)} are there for ever")
    for uuid, x in model.loads().items():
        demand(
            x.free_mb == model.devices[uuid].total_mb, f"L2: {uuid} has {x.free_mb} MiB for ever"
        )


def key(state: State) -> tuple[Any, ...]:
    """Equal for states with the same future: times as distances, fences by their order."""
    models = [m for m in (state.model, state.replica) if m]
    fences = {0, state.highest, *(c.fence for c in state.clients), *(m.fence for m in models)}
    fences |= {e.fence for m in models for e in m.entries.values()}
    rank, now = {fence: i for i, fence in enumerate(sorted(fences))}, state.model.raw_us // 1000
    parts: list[Any] = [state.left, rank[state.highest]]
    parts += [(c.left, rank[c.fence], c.held, max(-1, c.ends_ms - now), *c[4:])
              for c in state.clients]  # fmt: skip
    for m in models:
        parts += [
            rank[m.fence], m.another, m.offset_ms, m.now - now, max(-9, m.closed_until_ms - now),
            max(-9, m.window_until_ms - now), m.leap_from_ms - now, m.lost_us // 1000 - now,
            max(-101, m.looked_ms - now), *((token, m.ended(token)) for token in sorted(m.done)),
        ]  # fmt: skip
        parts += [(e.token, e.state, e.due_ms - now, e.held, rank[e.fence], e.expires_at_ms - now,
                   e.rank // 1000 - now, e.reserved, e.until_ms - now if e.reserved else 0,
                   max(-1, e.reserves_ms - now), e.outcome)
                  for _, e in sorted(m.entries.items())]  # fmt: skip
        parts += [(d.withheld_mb, d.unleased_mb, d.withheld_at_ms - now if d.withheld_mb else 0)
                  for d in m.devices.values()]  # fmt: skip
    return tuple(parts)


@dataclass
class Found:
    """The findings of an exploration."""

    states: int = 0
    moves: int = 0
    depth: int = 0
    paths: list[tuple[Step, ...]] = field(default_factory=list)


def explore(most: int) -> Found:
    """Breadth first until so many different states were seen. Raises Broken."""
    start = beginning()
    seen, layer, found = {hash(key(start))}, [start], Found(states=1)
    while layer and found.states < most:
        found.depth += 1
        following = []
        for state in layer:
            for what, who, step in moves(state):
                for new in after(state, what, who, step):
                    found.moves += 1
                    mark = hash(key(new))
                    if mark in seen:
                        continue
                    seen.add(mark)
                    following.append(new)
                    if found.states % 16 == 0:
                        quiet(new)
                    found.paths.append(new.path)
                    found.states += 1
            if found.states >= most:
                break
        layer = following
    return found
