"""Several brokers on one store are one broker."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import GRANTING, Broker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

SHARED = ("gpu_orchestrator_active_leases", "gpu_orchestrator_lease_expired_total")


@pytest.fixture
def pair(server: Server) -> Iterator[tuple[Broker, Broker, LeaseClient]]:
    """Two replicas and an agent on a pool of their own."""
    pool = f"pair-{uuid4().hex[:8]}"
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool}
    with ExitStack() as stack:
        one = stack.enter_context(Broker(**settings))
        two = stack.enter_context(Broker(**settings | {"GPU_BROKER_DEVICES": "none"}))
        agent = stack.enter_context(LeaseClient(Store(server.url), pool=pool, hostname="h1"))
        yield one.wait(), two.wait(), agent


def shared(broker: Broker) -> dict[str, float]:
    """The metrics that every replica must export alike."""
    metrics = broker.metrics()
    return {name: metrics[name] for name in SHARED}


def test_replicas_agree_at_once_and_end_each_others_leases(
    pair: tuple[Broker, Broker, LeaseClient],
) -> None:
    """Allocations, shared metrics and policy are one, whichever is asked."""
    one, two, agent = pair
    mine = one.granted(min_memory_mb=300)
    held = agent.acquire("sdk", memory_mb=300)
    assert set(one.allocations()) == set(two.allocations()) == {mine["token"], held.token}
    assert shared(one) == shared(two) == {SHARED[0]: 2, SHARED[1]: 0}
    one.http.post("/policy", json={"default_memory_mb": 77})
    assert two.http.get("/policy").json() == one.http.get("/policy").json()
    assert two.release(mine["token"]).status_code == 200
    assert one.release(mine["token"]).status_code == 404
    agent.release(held)


def test_replicas_race_to_reap_and_each_end_happens_once(
    pair: tuple[Broker, Broker, LeaseClient],
) -> None:
    """Two tickers, thirty leases that end together: thirty events, and the same count at both."""
    one, two, agent = pair
    tokens = {agent.acquire(f"a{n}", memory_mb=10, ttl_s=1).token for n in range(30)}
    eventually(lambda: not one.allocations(), 5)
    ended = [
        f["token"] for _, f in agent.redis.xrange(agent.keys.events) if f["event"] == "expired"
    ]
    assert sorted(ended) == sorted(tokens)
    assert shared(one) == shared(two) == {SHARED[0]: 0, SHARED[1]: 30}


def test_replica_killed_leaves_the_other_serving(
    pair: tuple[Broker, Broker, LeaseClient],
) -> None:
    """No replica is needed for the others to go on; a restart resets no shared figure."""
    one, two, agent = pair
    agent.acquire("a", memory_mb=10, ttl_s=1)
    eventually(lambda: not two.allocations(), 5)
    one.kill()
    assert two.http.get("/ready").status_code == 200
    assert shared(two)[SHARED[1]] == 1
    assert two.granted(min_memory_mb=10, host="h1")["gpu"] == 0
