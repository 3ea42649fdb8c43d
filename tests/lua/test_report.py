"""report: the pool begins with it, hosts live by it, and nothing in it can promise too much."""

from __future__ import annotations

from agent_sdk.state import snapshot
from tests.pools import Pool, device, granted, said, token, uuids

POLICY = {
    "policy_version": "1", "max_memory_per_agent_mb": "1048576", "allow_fractional_shares": "1",
    "kill_on_oom": "0", "default_memory_mb": "2048", "expiry_grace_s": "5",
    "max_leases_per_agent": "256", "max_waiters_per_agent": "256", "idle_action": "observe",
    "overuse_action": "observe", "squatter_action": "observe", "orphan_action": "observe",
    "idle_after_s": "600", "enforce_after_s": "60", "overuse_slack_mb": "512",
    "idle_foreign_mb": "512", "xid_actions": "", "memory_limit": "off", "mps_thread_share": "0",
    "reservation_idle_s": "60", "half_life_s": "604800", "reclaim_after_s": "60",
    "min_runtime_s": "300", "preempt_grace_s": "60",
    "forget_devices_after_s": "3600", "forget_hosts_after_s": "86400",
    "usage_days": "400", "history_leases": "10000", "price_per_gpu_hour": "",
}  # fmt: skip


def test_report_to_an_empty_store_creates_the_pool(pool: Pool) -> None:
    """The first report makes the pool with the policy's defaults, open, and named by its epoch."""
    reply = pool.report((device("gpu-a", 1000),))
    tag, now, next_deadline, epoch, more = reply
    assert (tag, next_deadline, more) == ("REPORTED", now + 15000, 0)
    assert int(epoch) // 1000 == now
    row = pool.hash("pool")
    assert row.pop("run_id") == pool.redis.info("server")["run_id"]
    assert row.pop("replid") == pool.redis.info("replication")["master_replid"]
    lives = [row.pop(name) for name in list(row) if name.startswith("served")]
    assert len(lives) == pool.functions
    assert int(row.pop("sequence")) // 1000 == now
    assert row == POLICY | {
        "schema": "4", "capacity_mb": "1000", "epoch": epoch, "fence": "0", "offset_ms": "0",
        "last_ms": str(now),
        "window_until_ms": "0", "leap_from_ms": "0", "closed_until_ms": "0", "waiting": "0",
        "safe_mode": "0", "looked_ms": str(now), "next_deadline_ms": str(now + 15000),
        "silence_ms": "15000",
            "sweep_ms": str(now + 300_000),
    }  # fmt: skip
    assert pool.events() == ["pool_created", "device", "host_up"]


def test_report_without_devices_creates_the_pool_too(pool: Pool) -> None:
    """A host without GPUs is a host; the pool is ready and has nothing to give."""
    assert said(pool.report()) == ["REPORTED"]
    assert said(pool.acquire(host="h1")) == ["REFUSED", "host_unknown", ""]
    assert said(pool.acquire()) == ["REFUSED", "never_fits", ""]
    assert pool.redis.smembers(pool.keys.hosts) == {"h1"}


def test_report_says_safe_mode_only_where_it_creates_the_pool(pool: Pool) -> None:
    """A later reporter changes no policy."""
    pool.report(safe_mode=1)
    pool.report(safe_mode=0)
    assert pool.hash("pool")["safe_mode"] == "1"
    pool.policy(safe_mode=0)
    pool.report(safe_mode=1)
    assert pool.hash("pool")["safe_mode"] == "0"


def test_report_changes_no_policy_that_was_set(pool: Pool) -> None:
    """A field that an operator set stays, report after report."""
    pool.report()
    pool.policy(expiry_grace_s=9, default_memory_mb=7, policy_version=3)
    pool.live_on(10000)
    row = pool.hash("pool")
    assert (row["expiry_grace_s"], row["default_memory_mb"], row["policy_version"]) == (
        "9", "7", "3",
    )  # fmt: skip


def test_report_that_remembers_an_epoch_closes_an_empty_store(pool: Pool) -> None:
    """A reporter of the pool before knows that its data are lost: 60 s for holders first."""
    epoch = pool.report((device("gpu-a", 1000),))[3]
    for key in pool.stored():
        pool.redis.delete(key)
        pool.by_hand()
    pool.skew(1)
    reply = pool.report((device("gpu-a", 1000),), epoch=epoch)
    assert reply[3] != epoch
    assert int(pool.hash("pool")["closed_until_ms"]) == reply[1] + 60000
    assert said(pool.acquire()) == ["REFUSED", "closed", ""]
    pool.live_on(60000)
    granted(pool.acquire())


def test_report_with_the_pools_own_epoch_closes_nothing(pool: Pool) -> None:
    """An epoch that is still true is the normal case."""
    epoch = pool.report((device("gpu-a", 1000),))[3]
    assert pool.report(epoch=epoch)[3] == epoch
    assert pool.hash("pool")["closed_until_ms"] == "0"


def test_verb_replies_all_name_the_epoch(pool: Pool) -> None:
    """Every reply carries it, so that everybody notices when memory was lost."""
    epoch = pool.report((device("gpu-a", 1000),))[3]
    replies = (
        pool.acquire(token("a")), pool.renew(token("a")), pool.release(token("a")), pool.reap(),
        pool.report(), pool.acquire(memory_mb=9999), pool.renew(token("b")),
    )  # fmt: skip
    assert {reply[3] for reply in replies} == {epoch}


def test_report_sets_the_hosts_deadline_anew(pool: Pool) -> None:
    """Each report is a sign of life for deadline_ms from now; the latest counts, if shorter too."""
    now = pool.report(deadline_ms=15000)[1]
    pool.skew(3000)
    pool.report(deadline_ms=20000)
    assert pool.first_deadline() == now + 23000
    pool.report(deadline_ms=5000)
    assert pool.first_deadline() == now + 8000
    row = pool.hash("host:h1")
    assert row.pop("up_ms") == str(now)
    assert row == {"version": "test", "reported_ms": str(now + 3000), "deadline_ms": "5000"}


def test_report_in_several_calls_keeps_what_the_first_said(pool: Pool) -> None:
    """A host of more than 64 devices reports in parts: no part takes back another."""
    parts = [tuple(device(f"gpu-{p}-{n}") for n in range(64)) for p in range(2)]
    for _ in range(2):
        for part in parts:
            assert said(pool.report(part)) == ["REPORTED"]
    assert len(pool.free("host/h1")) == 128
    assert pool.events().count("host_up") == 1


def test_report_of_64_devices_is_taken_and_of_65_refused(pool: Pool) -> None:
    """One call carries at most 64 devices: what is more changes nothing."""
    assert said(pool.report(tuple(device(f"gpu-{n}") for n in range(64)))) == ["REPORTED"]
    before = pool.stored()
    answer = said(pool.report(tuple(device(f"new-{n}") for n in range(65))))
    assert answer == ["REFUSED", "bad_request", "devices"]
    assert pool.stored() == before


def test_report_unchanged_writes_no_event_and_moves_no_index(pool: Pool) -> None:
    """A heartbeat with the same devices is a time in their hashes, the host's, and its deadline."""
    devices = (device("gpu-a", 1000), device("gpu-b", 2000, used_mb=100))
    pool.report(devices)
    pool.acquire()
    before = pool.stored()
    pool.skew(400)
    pool.report(devices)
    after = pool.stored()
    changed = {key for key in after if after[key] != before.get(key)}
    listed = {pool.keys.device(uuid) for uuid, _ in devices}
    assert changed - {pool.keys.pool} == {pool.keys.deadlines, pool.keys.host("h1"), *listed}


def test_report_in_safe_mode_goes_on(pool: Pool) -> None:
    """SAFE_MODE stops grants, not the view of what is there."""
    pool.report((device("gpu-a", 1000),), safe_mode=1)
    pool.report((device("gpu-a", 2000), device("gpu-b", 500)))
    assert pool.free() == {"gpu-a": 2000, "gpu-b": 500}


def test_report_is_read_back_word_for_word(pool: Pool) -> None:
    """`snapshot.devices` shows a host's words about a device, unknown as None."""
    pool.report((
        device("gpu-a", 1000, index=3, reason="", utilization_gpu_pct="12.5", temperature_c="61",
               power_draw_w="", used_mb=40, system_mb=30),
        device("gpu-b", 1000, used_mb="", reason="driver: no memory info", state="degraded",
               nvml_error="NVMLError_NotSupported"),
    ), sampled_ms=5)  # fmt: skip
    pool.acquire(memory_mb=100, agent="me")
    a, b = pool.look(snapshot.devices(pool.keys))[::-1]
    assert (a.uuid, a.index, a.host, a.name, a.model) == ("gpu-a", 3, "h1", "Test GPU", "m1")
    assert (a.total_mb, a.system_mb, a.used_mb, a.unleased_mb) == (1000, 30, 40, 40)
    assert (a.leased_mb, a.free_mb, a.leases, a.sampled_ms) == (100, 830, 1, 5)
    telemetry = a.telemetry
    assert (telemetry["utilization_gpu_pct"], telemetry["temperature_c"]) == (12.5, 61)
    assert telemetry["power_draw_w"] is None
    assert (b.state, b.reason, b.used_mb) == ("degraded", "driver: no memory info", None)
    assert b.nvml_error == "NVMLError_NotSupported"


def test_report_from_hosts_named_like_selectors_keeps_them_apart(pool: Pool) -> None:
    """A host may be called `host` or `model`: the pool's own words do not get in its way."""
    pool.report((device("gpu-a", 1000, model="m1"),), host="host")
    pool.report((device("gpu-b", 1000, model="m1"),), host="model")
    pool.report((device("gpu-c", 1000, model="m1"),), host="h3")
    assert said(pool.acquire(host="m1")) == ["REFUSED", "host_unknown", ""]
    assert said(pool.acquire(host="model", model="m1", devices=2)) == ["REFUSED", "never_fits", ""]
    assert uuids(pool.acquire(host="host", model="m1")) == ["gpu-a"]
    assert uuids(pool.acquire(host="model", exclusive=1)) == ["gpu-b"]
