"""GET and POST /health, GET /ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import eventually

if TYPE_CHECKING:
    from tests.api.brokers import Answered, Broker
    from tests.api.conftest import Fleet
    from tests.pools import Pool

    Storeless = dict[tuple[str, str], Answered]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_health_on_a_running_broker_says_ok(plain: Broker, method: str) -> None:
    """Liveness answers 200 with the documented fields and ours."""
    answer = plain.http.request(method, "/health")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["safe_mode"], body["redis"]) == ("ok", False, "up")
    assert body["version"]
    assert body["replica"]


def test_health_of_two_replicas_names_each(fleet: Fleet) -> None:
    """Two replicas have two ids."""
    ids = {b.http.get("/health").json()["replica"] for b in (fleet.plain, fleet.replica)}
    assert len(ids) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_health_without_redis_still_says_ok(storeless: Storeless, method: str) -> None:
    """A broker without its store is alive, and says that the store is down."""
    answer = storeless[method, "/health"].http
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["redis"] == "down"


def test_health_under_safe_mode_says_so(fleet: Fleet) -> None:
    """SAFE_MODE shows, whether the environment or the pool's policy has it."""
    assert fleet.safe.http.get("/health").json()["safe_mode"] is True
    assert fleet.unset.http.get("/health").json()["safe_mode"] is True


def test_ready_on_a_ready_broker_is_200(fleet: Fleet) -> None:
    """A broker that can grant answers 200, also one without devices or under SAFE_MODE."""
    for broker in (fleet.plain, fleet.replica, fleet.none, fleet.nvml, fleet.safe, fleet.unset):
        answer = broker.http.get("/ready")
        assert (answer.status_code, answer.json()) == (200, {"ready": True})


def test_ready_without_redis_is_503_with_the_reason(storeless: Storeless) -> None:
    """A broker without its store is not ready, and says why and when to ask again."""
    answer = storeless["GET", "/ready"].http
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert "Redis" in answer.json()["reason"]
    assert int(answer.headers["Retry-After"]) >= 1


def test_ready_stays_200_under_safe_mode(plain: Broker, api_pool: Pool) -> None:
    """An operator wants it so: `/health` says it, and no start waits for its end."""
    api_pool.set_policy(safe_mode=1)
    try:
        eventually(lambda: plain.http.get("/health").json()["safe_mode"], 5)
        ready = plain.http.get("/ready")
    finally:
        api_pool.set_policy(safe_mode=0)
        eventually(lambda: not plain.http.get("/health").json()["safe_mode"], 5)
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


def test_events_without_redis_are_503_soon(storeless: Storeless) -> None:
    """A client cannot go on from an unknown position: it is told to come back."""
    answer = storeless["GET", "/events"]
    assert (answer.http.status_code, answer.http.json()["code"]) == (503, "store_unavailable")
    assert int(answer.http.headers["Retry-After"]) >= 1
    assert answer.seconds < 4


def test_ready_is_503_while_nothing_can_be_granted(plain: Broker, api_pool: Pool) -> None:
    """A closed pool and a full store answer what /lease would say, and recover by themselves."""
    redis, keys = api_pool.redis, api_pool.keys
    redis.hset(keys.pool, "closed_until_ms", 9_999_999_999_999)
    redis.hincrby(keys.pool, "sequence", 1)
    closed = plain.http.get("/ready")
    redis.hset(keys.pool, "closed_until_ms", 0)
    redis.hincrby(keys.pool, "sequence", 1)
    assert (closed.status_code, closed.json()["ready"]) == (503, False)
    assert "lost data" in closed.json()["reason"]
    redis.config_set("maxmemory", "1mb")
    try:
        full, lease = plain.http.get("/ready"), plain.lease(min_memory_mb=1)
    finally:
        redis.config_set("maxmemory", "0")
    assert (full.status_code, lease.status_code) == (503, 503)
    assert "maxmemory" in full.json()["reason"]
    assert lease.json()["code"] == "store_full"
    assert plain.http.get("/ready").status_code == 200
