"""The labelled families of /metrics: what they count, and that promtool has nothing to say."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_sdk.state.events import Event
from broker.live.durations import MOST
from broker.metrics import Metrics
from tests.api.brokers import GRANTING, Broker, eventually
from tests.program import called
from tests.servers import running

if TYPE_CHECKING:
    from broker.metrics.flow import Flow
    from tests.servers import Server


def samples(broker: Broker) -> dict[str, float]:
    """Series -> value, with their labels in the order of the text."""
    lines = broker.http.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {n: after[n] - before.get(n, 0) for n in after if after[n] != before.get(n, 0)}


DEVICE = 'gpu="0",host="h1",uuid="SIM-h1-0"'


def test_story_of_leases_is_counted(broker: Broker) -> None:
    """A grant, a refusal, a wait that is handed on, the ends; then the same again is as much."""
    before = samples(broker)
    held = broker.granted(min_memory_mb=900)
    assert broker.lease(min_memory_mb=5000, on_unavailable="refuse").status_code == 409
    got: list[str] = []

    def wait() -> None:
        got.append(broker.granted(min_memory_mb=900, wait_s=10)["token"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: samples(broker)['gpu_broker_leases{state="waiting"}'] == 1, 5)
    time.sleep(0.3)
    during = samples(broker)
    assert during["gpu_broker_oldest_waiter_seconds"] > 0.2
    assert during[f"gpu_broker_device_memory_leased_bytes{{{DEVICE}}}"] == 900 * 1024 * 1024
    assert during[f"gpu_broker_device_memory_free_bytes{{{DEVICE}}}"] == 100 * 1024 * 1024
    broker.release(held["token"])
    waiting.join()
    broker.release(got[0])
    after = eventually(lambda: _counted(before, samples(broker)), 5)
    assert after['gpu_broker_grants_total{kind="gpu"}'] == 2
    assert after['gpu_broker_refusals_total{reason="never_fits"}'] == 1
    assert after['gpu_broker_lease_ends_total{kind="gpu",reason="released"}'] == 2
    assert after['gpu_broker_queue_events_total{event="enqueued"}'] == 1
    assert after["gpu_broker_wait_seconds_count"] == 1
    assert 0.2 < after["gpu_broker_wait_seconds_sum"] < 5
    assert after["gpu_broker_claim_seconds_count"] == 1
    assert after.get("gpu_broker_claim_seconds_sum", 0) < 0.5
    assert after['gpu_broker_hold_seconds_count{reason="released"}'] == 2


def _counted(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the counters that have grown, once the stream's reader has come so far."""
    found = grown(before, after)
    return found if found.get('gpu_broker_hold_seconds_count{reason="released"}') == 2 else {}


def test_promtool_has_nothing_to_say(broker: Broker) -> None:
    """Names, units, types, help."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    text = broker.http.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_labels_are_bounded_whatever_clients_send(broker: Broker) -> None:
    """Neither a path, a method, a token nor an agent's name gets into a label."""
    for n in range(20):
        broker.http.get(f"/no/such/path-{n}")
        broker.http.request("PURGE", "/health")
        lease = broker.granted(agent=f"agent-number-{n}", min_memory_mb=1)
        broker.http.get(f"/lease/{lease['token']}")
        broker.release(lease["token"])
    text = broker.http.get("/metrics").text
    assert not re.search(r"path-\d|PURGE|agent-number|[0-9a-f]{8}-[0-9a-f]{4}-", text)
    found = samples(broker)
    assert found['gpu_broker_http_requests_total{method="GET",route="other",status="404"}'] == 20
    purged = [name for name in found if 'method="other"' in name]
    assert [found[name] for name in purged] == [20]
    route = 'method="GET",route="/lease/{token}",status="200"'
    assert found[f"gpu_broker_http_requests_total{{{route}}}"] == 20


def test_replicas_export_the_same_of_the_pool(own: Server, broker: Broker) -> None:
    """And each its own name."""
    other = {"GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2"}
    with Broker(**GRANTING | other, REDIS_URL=own.url) as second:
        second.wait()
        broker.release(broker.granted(min_memory_mb=1)["token"])
        names = ("gpu_broker_grants_total", "gpu_broker_lease_ends_total", "gpu_broker_device_st")
        first, again = samples(broker), samples(second)
        assert all(again[n] == first[n] for n in first if n.startswith(names))
        (a,), (b,) = ([n for n in x if n.startswith("gpu_broker_build")] for x in (first, again))
        assert a != b


def test_use_counts_when_a_lease_ends() -> None:
    """The default team has series without any policy; no team that a client makes up has."""
    leases = 'gpu_broker_usage_leases_total{team="default"}'
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        lease = broker.granted(min_memory_mb=500)
        broker.release(broker.granted(min_memory_mb=100, team="made-up")["token"])
        time.sleep(1)
        assert samples(broker)[leases] == 0
        broker.release(lease["token"])
        eventually(lambda: samples(broker)[leases] == 1, 30, every_s=0.5)
        found = samples(broker)
    gpu_s = sum(n for name, n in found.items() if "gpu_broker_usage_gpu_seconds_total" in name)
    byte_s = found['gpu_broker_usage_memory_byte_seconds_total{team="default"}']
    assert 0.5 < gpu_s < 5
    assert byte_s / gpu_s == pytest.approx(1000 * 1024 * 1024, rel=0.01)
    assert not any("made-up" in name for name in found)


def test_redis_that_is_away_is_told(own: Server) -> None:
    """redis_up 0, and /metrics answers all the same, without the pool's figures."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        assert samples(broker)["gpu_broker_redis_up"] == 1
        assert samples(broker)["gpu_broker_redis_duration_seconds_count"] >= 1
        server.process.kill()
        found = eventually(lambda: (x := samples(broker))["gpu_broker_redis_up"] == 0 and x, 10)
        assert not any(name.startswith("gpu_broker_leases") for name in found)


def test_store_that_fills_up_is_told_beforehand(own: Server) -> None:
    """Its memory and its limit, of which there is none without one; doctor warns from .9 on."""

    def store(broker: Broker, limit_mb: int) -> tuple[float, float | None]:
        with server.connect() as redis:
            redis.config_set("maxmemory", limit_mb * 2**20)
        found = samples(broker)
        limit = found.get("gpu_broker_redis_memory_limit_bytes")
        return found["gpu_broker_redis_memory_used_bytes"] / 2**20, limit and limit / 2**20

    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        used_mb, limit_mb = store(broker, 0)
        assert (0 < used_mb < 50, limit_mb) == (True, None)
        assert store(broker, 100)[1] == 100
        well = called("doctor", REDIS_URL=server.url)
        assert "of 100.00M" in well.stdout
        assert "nearly full" not in well.stdout
        with server.connect() as redis:
            redis.config_set("maxmemory", 0)
            redis.set("padding", bytes(64 * 2**20))
        used_mb, _ = store(broker, 200)
        assert store(broker, round(used_mb / 0.95))[0] > 64
        full = called("doctor", REDIS_URL=server.url)
        assert "the store is nearly full" in full.stdout
        assert full.returncode == 1


def test_store_at_maxmemory_is_read_as_before(own: Server) -> None:
    """Metrics and use, for which some servers refuse the transactions then."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait().granted(agent="ann", min_memory_mb=500)
        with server.connect() as redis:
            redis.config_set("maxmemory", 2**19)
        assert broker.lease(min_memory_mb=1, on_unavailable="refuse").status_code == 503
        found = samples(broker)
        assert found['gpu_broker_leases{state="active"}'] == 1
        assert found["gpu_broker_redis_memory_limit_bytes"] == 2**19
        (row,) = broker.http.get("/usage").json()["rows"]
        assert (row["agent"], row["running"]) == ("ann", 1)
        assert broker.http.get("/history").status_code == 200


def test_flow_forgets_the_oldest_of_too_many_waiters() -> None:
    """A stream of waiters that never get anything costs no more than MOST of them."""
    metrics = Metrics()
    flow: Flow = metrics.flow
    for n in range(MOST + 10):
        flow.take(Event(f"{n}-0", "waiting", {"token": f"t{n}"}))
    assert len(flow._spans._enqueued) == MOST
    flow.take(Event(f"{MOST + 20}-0", "granted", {"token": "t0"}))
    flow.take(Event(f"{MOST + 20}-0", "granted", {"token": f"t{MOST}"}))
    assert b"gpu_broker_wait_seconds_count 1.0" in metrics.text(None, None)


def test_flow_takes_any_event() -> None:
    """An event of a later version, or one written by hand, does no harm."""
    metrics = Metrics()
    for name, fields in (("", {}), ("news", {}), ("released", {}), ("expired", {"fence": "x"})):
        metrics.flow.take(Event("1-0", name, fields))
    assert b'gpu_broker_hold_seconds_count{reason="expired"} 0.0' in metrics.text(None, None)
