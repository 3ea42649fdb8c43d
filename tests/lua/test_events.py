"""Events, one per change of state or devices; counters that add up to what lives."""

from __future__ import annotations

from typing import Any

from agent_sdk.state import queue, snapshot
from tests.pools import Pool, device, granted, token

REAL = (device("gpu-a", 1000, simulated=0),)


def since(pool: Pool, seen: list[str]) -> list[str]:
    """The events after those that were seen."""
    return pool.events()[len(seen) :]


def last(pool: Pool) -> dict[str, str]:
    """The newest event."""
    found: Any = pool.redis.xrevrange(pool.keys.events, count=1)
    return dict(found[0][1])


def test_report_writes_events_only_for_what_changed(pool: Pool) -> None:
    """A pool, a host, a device: once when it appears; later when its state changes."""
    pool.report(REAL)
    seen = pool.events()
    assert seen == ["pool_created", "device", "host_up"]
    for used_mb in (0, 0, 50, 70):
        pool.live_on(5000, devices=(device("gpu-a", 1000, simulated=0, used_mb=used_mb),))
    assert since(pool, seen) == []
    pool.report((device("gpu-a", 1000, state="lost", reason="gone"),))
    assert last(pool) == {
        "event": "device", "device": "gpu-a", "host": "h1", "state": "lost", "reason": "gone",
    }  # fmt: skip
    pool.report((device("gpu-a", 1000, state="lost", reason="gone"),))
    assert since(pool, seen) == ["device"]
    pool.report(REAL)
    assert since(pool, seen) == ["device", "device"]


def test_report_of_a_host_that_comes_and_goes_writes_one_event_each(pool: Pool) -> None:
    """host_up and host_away alternate, however often it reports in between."""
    pool.report(REAL)
    for _ in range(2):
        pool.live_on(20_000, host="other")
        pool.live_on(20_000, host="h1", devices=REAL)
    events = [
        fields["event"]
        for _, fields in pool.redis.xrange(pool.keys.events)
        if fields.get("host") == "h1" and fields["event"].startswith("host")
    ]
    assert events == ["host_up", "host_away", "host_up", "host_away", "host_up"]


def test_acquire_and_release_write_one_event_each(pool: Pool) -> None:
    """Granted and released, with token, agent, devices and fence; repeats write nothing."""
    pool.report(REAL)
    seen = pool.events()
    fence = str(granted(pool.acquire(token("a"))).fence)
    what = {"token": token("a"), "agent": "agent", "devices": "gpu-a=900", "fence": fence}
    assert last(pool) == {"event": "granted"} | what
    pool.acquire(token("a"))
    pool.acquire(token("a"), memory_mb=1)
    pool.acquire()
    for _ in range(5):
        pool.live_on(5000)
        pool.renew(token("a"), fence)
        pool.renew(token("a"), "1")
    ended_at_ms = str(pool.release(token("a"))[1])
    assert last(pool) == {"event": "released", "ended_at_ms": ended_at_ms} | what
    pool.release(token("a"))
    pool.release(token("never"))
    pool.renew(token("a"))
    pool.reap()
    assert since(pool, seen) == ["granted", "released"]


def test_reap_writes_an_event_when_it_expires_and_one_when_it_is_cold(pool: Pool) -> None:
    """Expired at the end of the lease, cooled at the end of the grace."""
    pool.report(REAL)
    seen = pool.events()
    pool.acquire(token("a"), ttl_ms=1000)
    pool.skew(1001)
    for _ in range(3):
        pool.reap()
    assert since(pool, seen) == ["granted", "expired"]
    assert last(pool)["token"] == token("a")
    pool.live_on(5001)
    assert since(pool, seen) == ["granted", "expired", "cooled"]


def test_acquire_on_the_cpu_writes_its_event_without_devices(pool: Pool) -> None:
    """A CPU lease is a change of state like any other."""
    pool.report(REAL)
    pool.acquire(token("a"), memory_mb=9999, on_unavailable="cpu")
    assert (last(pool)["event"], last(pool)["devices"]) == ("granted", "")
    pool.release(token("a"))
    assert (last(pool)["event"], last(pool)["devices"]) == ("released", "")


def test_events_are_trimmed(pool: Pool) -> None:
    """The stream keeps some ten thousand entries, not all of history."""
    pool.report(REAL)
    pipe = pool.redis.pipeline(transaction=False)
    for n in range(12_000):
        pipe.xadd(pool.keys.events, {"event": "filler", "n": n})
    pipe.execute()
    pool.acquire()
    assert 10_000 <= pool.redis.xlen(pool.keys.events) < 11_000
    assert last(pool)["event"] == "granted"


def test_stats_count_each_outcome_once(pool: Pool) -> None:
    """GPU and CPU leases apart, refusals by reason; repeats, renewals and conflicts not at all."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(token("1"), memory_mb=100)
    pool.acquire(token("1"), memory_mb=100)
    pool.acquire(token("1"), memory_mb=200)
    pool.acquire(token("2"), memory_mb=100, ttl_ms=5000)
    pool.acquire(token("3"), memory_mb=9000, on_unavailable="cpu", ttl_ms=5000)
    pool.acquire(token("4"), memory_mb=9000, on_unavailable="cpu")
    pool.acquire(memory_mb=9000)
    pool.acquire(memory_mb=950)
    pool.acquire(memory_mb=950)
    pool.acquire(host="nowhere")
    pool.renew(token("1"))
    pool.release(token("1"))
    pool.release(token("1"))
    pool.release(token("4"))
    pool.skew(5001)
    pool.reap()
    assert pool.stats() == {
        "granted": 2, "released": 1, "expired": 1, "cpu_granted": 2, "cpu_released": 1,
        "cpu_expired": 1, "refused_never_fits": 1, "refused_no_capacity": 2,
        "refused_host_unknown": 1,
    }  # fmt: skip


def test_stats_say_how_many_leases_live(pool: Pool) -> None:
    """PoolStatus.active_leases is the number of live records, whatever ended the others."""
    pool.report(REAL)

    def live() -> tuple[int, int]:
        status = pool.look(snapshot.pool(pool.keys))
        leases = pool.look(snapshot.leases(pool.keys))
        gpu = sum(bool(lease.devices) for lease in leases)
        assert (status.active_leases, status.active_cpu_leases) == (gpu, len(leases) - gpu)
        return gpu, len(leases) - gpu

    assert live() == (0, 0)
    for n in range(4):
        pool.acquire(token(n), memory_mb=100, ttl_ms=5000 * (n + 1))
        pool.acquire(token(f"cpu{n}"), memory_mb=9000, on_unavailable="cpu", ttl_ms=5000 * (n + 1))
    assert live() == (4, 4)
    pool.release(token(3))
    pool.release(token("cpu0"))
    assert live() == (3, 3)
    pool.live_on(5001)
    assert live() == (2, 3), "one cools, its record lives on, it is no lease"
    pool.live_on(5000)
    assert live() == (1, 2)
    pool.live_on(8000)
    assert live() == (0, 1)
    pool.live_on(20_000)
    assert live() == (0, 0)


def test_snapshot_of_a_lease_tells_what_was_asked_and_how_it_stands(pool: Pool) -> None:
    """A dashboard shows the lease as the ledger holds it; no expiry is None."""
    pool.report(REAL)
    got = granted(pool.acquire(token("a"), "me", priority=7, ttl_ms=0, owner="them", memory_mb=10))
    [lease] = pool.look(snapshot.leases(pool.keys))
    assert (lease.token, lease.agent, lease.devices) == (token("a"), "me", (("gpu-a", 10),))
    assert (lease.priority, lease.owner, lease.client, lease.pid) == (7, "them", "client", "1:1")
    assert (lease.fence, lease.expires_at_ms, lease.ttl_ms) == (got.fence, None, 0)
    pool.release(token("a"))
    assert pool.look(queue.lookup(pool.keys, token("a"))) == "released"
    assert pool.look(queue.lookup(pool.keys, token("b"))) is None


def test_event_about_a_lease_or_a_waiter_of_a_team_has_the_team(pool: Pool) -> None:
    """Each of them, whatever becomes of it."""
    day_ms, named = 86_400_000, set[str]()
    pool.report(REAL, deadline_ms=day_ms)
    pool.set_policy(reclaim_after_s=0)
    ask = {"team": "red", "memory_mb": 600}
    granted(pool.acquire(token("on"), **ask, ttl_ms=0, preemptible=1, yields=1))
    for found in (token("on"), ""):
        pool.report((device("gpu-a", simulated=0, idle=found),), deadline_ms=day_ms)
    large = ask | {"memory_mb": 900, "priority": 5, "wait_ms": 600_000}
    for _ in range(31):
        pool.acquire(token("large"), **large)
        pool.skew(3100)
    pool.ask(token("on"), token("large"))
    pool.set_policy(reclaim_after_s=1)
    pool.acquire(token("large"), **large)
    pool.release(token("large"))
    pool.extend(token("on"), day_ms)
    pool.revoke(token("on"), force=1)
    pool.skew(5001)
    pool.reap_all()
    events: Any = pool.redis.xrange(pool.keys.events)
    for _, fields in events:
        if "token" in fields:
            assert fields.get("team") == "red", fields
            named.add(fields["event"])
    assert named == {
        "granted", "finding_raised", "finding_cleared", "waiting", "reserved", "reservation_ended",
        "wanted", "preempting", "cancelled", "preemption_withdrawn", "extended", "revoke",
        "revoked", "cooled",
    }  # fmt: skip
