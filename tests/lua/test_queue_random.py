"""Thousands of random calls of agents that wait: S1, S2, S10 and S11 hold after each of them.

And each token gets at most one grant, whatever is repeated, left, lost or withdrawn.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.lua.queue_world import World
from tests.pools import Pool

if TYPE_CHECKING:
    from tests.servers import Server


ROUNDS, OPERATIONS = 12, 160


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis: the other tests show that the servers agree."""
    return own


LEAST = {
    "enqueued": 80, "offered": 5, "timed_out": 1, "cancelled": 5, "capped": 1, "cpu_granted": 20,
    "expired": 30,
}  # fmt: skip
"""Least number of each event, without which the walk has shown nothing of it."""


@pytest.mark.slow
def test_queue_in_any_order_keeps_every_invariant(server: Server) -> None:
    """GPU_BROKER_TEST_SEED repeats a run; half of the rounds have a policy that changes."""
    seed = int(os.environ.get("GPU_BROKER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    tags: dict[str, int] = {}
    with server.connect() as client:
        for number in range(ROUNDS * 4):
            if number >= ROUNDS and all(
                tags.get(name, 0) >= least for name, least in LEAST.items()
            ):
                break  # more rounds only until each kind of end was seen
            pool = Pool(client, checked=True)
            pool.freeze()
            world = World(pool, random.Random(seed + number), turbulent=number % 2 == 1)
            step = -1
            try:
                world.begin()
                while (step := step + 1) < OPERATIONS:
                    world.step()
                    audit(client, pool.keys)
            except Exception as error:
                where = f"GPU_BROKER_TEST_SEED={seed}, round {number}, operation {step}"
                raise AssertionError(f"{where}: {error}") from error
            events = pool.events()
            counts = pool.stats() | {n: events.count(n) for n in ("reserved", "withdrawn")}
            for name, count in counts.items():
                tags[name] = tags.get(name, 0) + count
            tags["capped"] = tags.get("capped", 0) + world.capped
    for name, least in LEAST.items():
        assert tags.get(name, 0) >= least, (seed, name, tags)
