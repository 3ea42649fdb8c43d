"""Fairness beside what `test_fairness` says: who gets which room, by a plain model of the queue."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit import audit
from tests.lua.queue_world import HOSTS, ORDINARY, World
from tests.lua.queues import Queue
from tests.pools import Pool, granted, token

if TYPE_CHECKING:
    from tests.servers import Server


EXAMPLES = settings(
    max_examples=40, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis: the other tests show that the servers agree."""
    return own


def size_class(ask: dict[str, Any]) -> tuple[Any, ...]:
    """Those who ask alike: one host and model, sizes within a factor of two."""
    size = (ask["memory_mb"] - 1).bit_length()
    return ask["host"], ask["model"], bool(ask["exclusive"]), size


def shares_of(free_mb: int, queue: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Share one idle device: to the oldest head that fits, and look again.

    Args:
        free_mb: what the device has.
        queue: name and request, the oldest first.
    """
    served: list[str] = []
    total_mb = free_mb
    while True:
        seen: set[tuple[Any, ...]] = set()
        for name, ask in queue:
            if name in served or size_class(ask) in seen:
                continue
            seen.add(size_class(ask))
            if ask["exclusive"]:
                if free_mb == total_mb >= ask["memory_mb"]:
                    return [*served, name]
            elif ask["memory_mb"] <= free_mb:
                served.append(name)
                free_mb -= ask["memory_mb"]
                break
        else:
            return served


REQUEST = st.fixed_dictionaries({
    "memory_mb": st.integers(1, 1000), "exclusive": st.sampled_from([0, 0, 0, 1]),
    "host": st.sampled_from(["*", "h1"]), "model": st.sampled_from(["*", "m1"]),
    "priority": st.sampled_from([0, 0, 1, 9]),
})  # fmt: skip


@EXAMPLES
@given(requests=st.lists(REQUEST, min_size=1, max_size=10))
def test_room_goes_to_the_oldest_head_that_fits_and_on(
    server: Server, requests: list[dict[str, Any]]
) -> None:
    """L1: who is offered a device that comes back is who a model of ten lines says, all of them."""
    queue = Queue.on(server, 1000)
    ranks = {}
    for n, ask in enumerate(requests):
        assert queue.wait(f"w{n}", **ask) == "WAITING"
        ranks[f"w{n}"] = int(queue.pool.hash(f"record:{token(f'w{n}')}")["rank"])
    joined = {f"w{n}": ask for n, ask in enumerate(requests)}
    order = sorted(joined.items(), key=lambda entry: ranks[entry[0]])
    queue.pool.release(token("hold-h1-0"))
    queue.pool.reap_all()
    states = {n: queue.pool.hash(f"record:{token(n)}")["state"] for n in joined}
    offered = {name for name, state in states.items() if state == "offered"}
    assert offered == set(shares_of(1000, order))
    queue.end()


@EXAMPLES
@given(ttls=st.lists(st.integers(2000, 9000), min_size=60, max_size=60), count=st.integers(2, 3))
def test_several_devices_are_not_starved_by_single_ones(
    server: Server, ttls: list[int], count: int
) -> None:
    """L3: whole devices of one host come together within 45 s, whatever takes them one by one."""
    queue = Queue.on(server, *[1000] * count)
    for n in range(count):
        queue.pool.release(token(f"hold-h1-{n}"))
        ask = {"memory_mb": 100, "exclusive": 1, "ttl_ms": 5000 + 1000 * n}
        granted(queue.pool.acquire(token(f"s-first-{n}"), f"first-{n}", **ask))
    assert queue.wait("several", devices=count, memory_mb=500) == "WAITING"
    for n, ttl_ms in enumerate(ttls):
        queue.pool.skew(750)
        ask = {"memory_mb": 100, "exclusive": 1, "ttl_ms": ttl_ms}
        queue.pool.acquire(token(f"s{n}"), f"s{n}", **ask)
        if n % 4 == 0 and queue.poll("several") == "GRANTED":
            break
    assert "several" in queue.served
    queue.end()


@EXAMPLES
@given(
    others=st.lists(st.tuples(st.integers(1, 250), st.booleans()), min_size=5, max_size=20),
    held_mb=st.integers(501, 900),
)
def test_younger_ones_of_other_queues_pass_a_keeper_no_more(
    server: Server, others: list[tuple[int, bool]], held_mb: int
) -> None:
    """L3: once its device is kept, none that comes later is granted before it, asked or waiting."""
    queue = Queue.on(server, 1000)
    queue.pool.release(token("hold-h1-0"))
    granted(queue.pool.acquire(token("held"), "held", memory_mb=held_mb, ttl_ms=0))
    assert queue.wait("large", memory_mb=1000) == "WAITING"
    for n in range(10):
        granted(queue.pool.acquire(token(f"before{n}"), f"b{n}", memory_mb=50, ttl_ms=1000))
        queue.pool.skew(3000)
        queue.poll("large")
    assert queue.pool.hash("device:h1-0")["reserved_for"] == token("large")
    for n, (mb, waits) in enumerate(others):
        queue.pool.skew(100)
        ask = {"memory_mb": mb, "wait_ms": 60_000 if waits else 0}
        assert queue.pool.acquire(token(f"late{n}"), f"l{n}", **ask)[0] != "GRANTED"
    audit(queue.pool.redis, queue.pool.keys)
    queue.pool.release(token("held"))
    queue.pool.reap_all()
    assert queue.poll("large") == "GRANTED"
    queue.end()


@EXAMPLES
@given(
    capped=st.integers(1, 8), mb=st.integers(51, 100), dead=st.integers(0, 3),
)  # fmt: skip
def test_neither_capped_nor_dead_ones_hold_up_the_first_who_can_have_it(
    server: Server, capped: int, mb: int, dead: int
) -> None:
    """L4: whoever is in front, the first that may and lives has its room within one claim."""
    queue = Queue.on(server, 1000)
    queue.host("h2", 1000, full=False)
    granted(queue.pool.acquire(token("anns"), "ann", memory_mb=1000, host="h2", ttl_ms=0))
    queue.pool.policy(max_memory_per_agent_mb=1000)
    here = {"host": "h1", "memory_mb": 9 * mb}
    for n in range(capped):
        queue.wait(f"ann{n}", agent="ann", **here)
    for n in range(dead):
        queue.wait(f"dead{n}", **here)
    queue.wait("live", **here)
    queue.pool.release(token("hold-h1-0"))
    for _ in range(4):
        queue.pool.skew(2501)
        queue.poll("live")
    assert queue.served == ["live"]
    queue.end()


COVERED = {"offered": 20, "withdrawn": 8, "timed_out": 8, "capped": 8}
MOST_ROUNDS, OPERATIONS, EVERY = 60, 150, 4


@dataclass
class Patient(World):
    """Those who wait poll every 3 s for as long as it takes; operators change policies."""

    dead: set[str] = field(default_factory=set)
    crowded: bool = False

    def begin(self) -> None:
        """Every host reports; in a crowded world a little of each device is held for good."""
        super().begin()
        for n in range(6 if self.crowded else 0):
            self.pool.acquire(token(f"on-{n}"), "dee", memory_mb=100, host=HOSTS[n // 2], ttl_ms=0)

    def pause(self) -> None:
        """The 3 s between polls pass; hosts report; the living ask again."""
        self.pool.skew(3000)
        for host in HOSTS:
            self.report(host)
        for name in self.who("waiting", "offered"):
            if name not in self.dead:
                self.ask(name)

    def who(self, *states: str) -> list[str]:
        """Return the last tokens in that state."""
        hget, record = self.pool.redis.hget, self.pool.keys.record
        return [name for name in list(self.asks)[-40:] if hget(record(name), "state") in states]

    def release(self) -> None:
        """One who holds something gives it back; now and then one leaves."""
        found = self.who("active") if self.rng.random() < 0.8 else self.who("waiting", "offered")
        if found:
            self.pool.release(self.rng.choice(found))

    def die(self) -> None:
        """One of those who wait, or were offered something, asks no more."""
        found = self.who("waiting", "offered")
        self.dead.update(self.rng.sample(found, min(len(found), 1)))

    def policy(self) -> None:
        """Turn a knob between an offer and its claim, and turn it back later."""
        rows = ({"max_memory_per_agent_mb": 2500}, {"max_leases_per_agent": 3}, ORDINARY, ORDINARY)
        self.pool.set_policy(**self.rng.choice(rows))

    def release_and_change(self) -> None:
        """Room is handed on, and a policy overtakes the offer before its claim."""
        self.release()
        self.policy()

    def step(self) -> None:
        """One operation, mostly patience."""
        operations = (
            (self.new, 55), (self.pause, 16), (self.release, 16), (self.repeat, 5),
            (self.release_and_change, 7), (self.change, 1), (self.revoke, 1), (self.die, 3),
        )  # fmt: skip
        kinds, weights = zip(*operations, strict=True)
        self.rng.choices(kinds, weights)[0]()


@pytest.mark.slow
def test_patience_in_any_order_keeps_every_invariant(server: Server) -> None:
    """Rounds go on until enough were offered, timed out, capped; GPU_BROKER_TEST_SEED repeats."""
    seed = int(os.environ.get("GPU_BROKER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    seen: Counter[str] = Counter()
    with server.connect() as client:
        for number in range(MOST_ROUNDS):
            pool = Pool(client, checked=True)
            pool.freeze()
            world = Patient(pool, random.Random(f"{seed}/{number}"), turbulent=True)
            world.crowded = number % 2 == 1
            step = -1
            try:
                world.begin()
                while (step := step + 1) < OPERATIONS:
                    world.step()
                    if step % EVERY == 0:
                        audit(client, pool.keys)
            except Exception as error:
                where = f"GPU_BROKER_TEST_SEED={seed}, round {number}, operation {step}"
                raise AssertionError(f"{where}: {error}") from error
            seen.update(name for name in pool.events() if name in COVERED)
            seen["capped"] += world.capped
            if number >= 1 and all(seen[name] >= least for name, least in COVERED.items()):
                return
    raise AssertionError((seed, seen))
