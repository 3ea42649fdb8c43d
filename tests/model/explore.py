"""Every life of a small world, breadth first, in the model: two devices, three clients; teams.

Calls arrive in any order, twice or never, replies are lost, clients die, and a replica that lacks
the last calls takes over. The clients are honest: who still believes in a lease when memory was
lost says so before the pool opens again, or is dead; who has given its lease back, or was told that
it ended, believes no late answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.model.each import Each
from tests.model.entries import Broken, Held, Reply, demand
from tests.model.model import Model
from tests.model.pair import START_US
from tests.model.recovery import Claim
from tests.model.scenes import CALLS, CROWD, MOMENT_MS, WAIT_MS, Scene
from tests.model.world import token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.world import Step


class Client(NamedTuple):
    """A client's belief, and its calls that may still arrive.

    `over`: the pool has told it so, and must not take it back while it remembers. `done`: it has
    given up its lease, whatever the pool may forget.
    """

    left: tuple[int, ...]
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

    scene: Scene
    model: Model
    clients: tuple[Client, ...]
    left: dict[str, int]
    replica: Model | None = None
    highest: int = 0
    path: tuple[Step, ...] = ()


def beginning(scene: Scene) -> State:
    """The pool is there, and what comes first has happened, in the first of its ways."""
    model = Model(Each(), START_US)
    for _, what, args in scene.first:
        call = {"policy": "set_policy", "teams": "set_teams"}.get(what, what)
        getattr(model, call)(**(args["fields"] if what == "policy" else args))
    enough = tuple(Client((9,) * len(CALLS)) for _ in scene.asks)
    state = State(
        scene, model, enough, dict.fromkeys(("time", "replicate"), 9), path=(*scene.first,)
    )
    for step in scene.begins:
        state = next(after(state, step[1], step[2].get("number", 0), step))
    state.clients = tuple(
        c._replace(left=calls) for c, calls in zip(state.clients, scene.calls, strict=True)
    )
    state.left = dict(scene.events)
    return state


def moves(state: State) -> Iterator[tuple[str, int, Step]]:
    """Return the possible next steps: the kind, the subject, and as a step of a life."""
    for who, client in enumerate(state.clients):
        for call, left in zip(CALLS, client.left, strict=True):
            recovers = call == "recover"
            if not left or (
                recovers and (not client.fence or client.over or state.left["failover"])
            ):
                continue
            args: dict[str, Any] = {"number": who}
            if call == "acquire":
                args |= {"ask": state.scene.asks[who]._asdict(), "wait_ms": WAIT_MS}
                yield "unheard", who, [0, call, args | {"lost": True}]
            yield call, who, [0, call, args]
    if state.left["time"]:
        ends = [at_ms for at_ms, name in state.model.deadlines() if not name.startswith("host:")]
        after_ms = max(1, ends[0] + 1 - state.model.now) if ends else 1000
        yield "time", 0, [0, "time", {"us": after_ms * 1000}]
    if state.left.get("moment"):
        yield "moment", 0, [0, "time", {"us": MOMENT_MS * 1000}]
    if state.left["replicate"]:
        yield "replicate", 0, [0, "replicate", {}]
    if state.left["failover"] and state.replica:
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
    if what in state.left:
        new.left = state.left | {what: state.left[what] - 1}
        return _event(new, what, step)
    new.model = model = state.model.copy()
    model.choose, chooser.model, ask = chooser, model, state.scene.asks[who]
    client, name = state.clients[who], token(who)
    call = "acquire" if what == "unheard" else what
    at = CALLS.index(call)
    client = client._replace(left=tuple(n - (i == at) for i, n in enumerate(client.left)))
    if call == "acquire":
        reply = model.acquire(name, ask, WAIT_MS)
    elif call == "release":
        reply = model.release(name)
    elif call == "renew":
        reply = model.renew(name, client.fence)
    else:
        reply = model.renew(name, client.fence, claim=Claim(model.epoch, ask, client.held))
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
    if what == "time" and any(
        not c.heard for c in new.clients
    ):  # who has not spoken by now is dead
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
    asks, trusted = (
        state.scene.asks,
        [(i, c) for i, c in enumerate(state.clients) if c.ends_ms >= now],
    )
    for uuid in model.devices:
        mine = [(asks[i], c) for i, c in trusted if uuid in dict(c.held)]
        alone = any(ask.exclusive or ask.devices > 1 for ask, _ in mine)
        demand(not alone or len(mine) == 1, f"S1: two clients trust {uuid}")
        mb = sum(dict(c.held)[uuid] for _, c in mine)
        demand(mb <= model.devices[uuid].total_mb, f"S1: clients trust {mb} MiB of {uuid}")


def quiet(state: State) -> None:
    """L2, L5: when nobody does anything any more, all comes back."""
    model = state.model.copy()
    model.choose = Each(model=model)
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
    parts: list[Any] = [tuple(state.left.values()), rank[state.highest]]
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
        if m.teams:  # of those that borrow there is one, so that no share orders anything
            parts += [(e.preempts, e.preempt_at_ms - now if e.preempt_at_ms else 0, e.preempt_for,
                       e.ended_ms - now if e.preempt_at_ms else 0, e.evictions, e.unnoticed,
                       min(now - e.enqueued_ms, 1000))
                      for _, e in sorted(m.entries.items())]  # fmt: skip
            parts += [tuple(sorted(m.evicted.items()))]
    return tuple(parts)


@dataclass
class Found:
    """The findings of an exploration."""

    states: int = 0
    moves: int = 0
    depth: int = 0
    paths: list[tuple[Step, ...]] = field(default_factory=list)

    def sample(self, size: int) -> list[tuple[Step, ...]]:
        """Choose about so many paths, and a quarter more of those that end by a recovery."""
        rare = [path for path in self.paths if path[-1][1] == "recover"]
        evenly = self.paths[:: max(1, len(self.paths) // size)]
        return evenly + rare[:: max(1, len(rare) // max(1, size // 4))]


def explore(most: int, scene: Scene = CROWD) -> Found:
    """Breadth first until so many different states were seen. Raises Broken."""
    start = beginning(scene)
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
