"""Totals of use: what the metrics of a pool say of its finished leases."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from agent_sdk.usage import totals
from broker.metrics.usage import usage_families
from tests.pools import Pool, device, granted, said, token

LATE_MS = 12_001
"""After so long a lease's hosts have said the last of it."""

SEEN = "gpu_broker_usage_"

GPU_TIMES = (
    'gpu_seconds_total{team="nlp",use="busy"}', 'gpu_seconds_total{team="nlp",use="idle"}',
    'gpu_seconds_total{team="nlp",use="unknown"}',
)  # fmt: skip


class Families:
    """Collector of a pool's families of use."""

    def __init__(self, pool: Pool, *teams: str) -> None:
        found = pool.look(totals.read(pool.keys, teams))
        self.collect = lambda: list(usage_families(found))


def samples(pool: Pool, *teams: str) -> dict[str, float]:
    """Series of use of these teams, by what follows their common name."""
    registry = CollectorRegistry()
    registry.register(Families(pool, *teams))  # type: ignore[arg-type] # it collects, which is all
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix(SEEN): float(value) for name, value in pairs}


def use(pool: Pool, *said_of: str) -> None:
    """Have the host say what it has seen of leases on the device."""
    pool.report((("gpu-a", {"same": 1, "state": "ok", "used_mb": 0, "use": ",".join(said_of)}),))


def end(pool: Pool, name: str) -> None:
    assert said(pool.release(token(name))) == ["RELEASED"]
    pool.skew(LATE_MS)
    pool.reap()


def test_counters_are_the_sums_in_base_units(pool: Pool) -> None:
    """Half a GPU for 20 s, of which hosts saw 10 s, 4 s of them busy; a lease that had waited."""
    pool.report((device("gpu-a", 8000),))
    granted(pool.acquire(token("1"), "ann", team="nlp", memory_mb=4000, ttl_ms=0))
    t = int(pool.reap()[1])
    use(pool, f"{token('1')}={t}:{t}::1000:")
    pool.skew(10_000)
    use(pool, f"{token('1')}={t}:{t + 10_000}:4000:2000:7000")
    pool.skew(10_000)
    ask = {"team": "nlp", "memory_mb": 8000, "ttl_ms": 0, "wait_ms": 60_000}
    assert said(pool.acquire(token("2"), "bob", **ask))[0] == "WAITING"
    pool.release(token("1"))
    granted(pool.acquire(token("2"), "bob", **ask))
    pool.skew(LATE_MS)
    pool.report((device("gpu-a", 8000),))
    pool.reap()
    found = samples(pool, "nlp", "idle-team")
    assert [found[name] for name in GPU_TIMES] == [2, 3, 5]
    assert found['leases_total{team="nlp"}'] == 1
    assert found['memory_byte_seconds_total{team="nlp"}'] == 4000 * 20 * 1024 * 1024
    assert found['memory_above_peak_byte_seconds_total{team="nlp"}'] == 2000 * 20 * 1024 * 1024
    assert found['energy_joules_total{team="nlp"}'] == 7
    assert found['waits_total{team="nlp"}'] == 0
    assert {found[name] for name in found if "idle-team" in name} == {0}
    pool.skew(5000)
    end(pool, "2")
    after = samples(pool, "nlp")
    assert after['waits_total{team="nlp"}'] == 1
    assert after['wait_seconds_total{team="nlp"}'] == 0
    assert all(after[name] >= found[name] for name in after)


def test_peaks_are_a_cumulative_histogram_without_a_sum(pool: Pool) -> None:
    """A lease counts in each bucket whose bound its peak does not exceed; `+Inf` has all."""
    pool.report((device("gpu-a", 8000),))
    for name, peak_mb in (("1", 100), ("2", 500), ("3", 1000), ("4", 1500)):
        granted(pool.acquire(token(name), "ann", memory_mb=1000, ttl_ms=0))
        t = int(pool.reap()[1])
        use(pool, f"{token(name)}={t}:{t}::{peak_mb}:")
        assert said(pool.release(token(name))) == ["RELEASED"]
    granted(pool.acquire(token("5"), "ann", memory_mb=1000, ttl_ms=0))
    end(pool, "5")  # its peak is not known
    found = samples(pool, "default")
    peaks = {name: n for name, n in found.items() if name.startswith("gpu_broker_lease_peak_")}
    assert peaks == {
        f'gpu_broker_lease_peak_ratio_bucket{{le="{most}"}}': n
        for most, n in (("0.1", 1), ("0.25", 1), ("0.5", 2), ("0.75", 2), ("0.9", 2), ("1.0", 3),
                        ("+Inf", 4))
    }  # fmt: skip
    assert found['leases_total{team="default"}'] == 5


def test_one_command_reads_the_teams_that_are_asked_for(pool: Pool) -> None:
    """Clients may make up any number of teams, and none of them costs a scrape anything."""
    pool.report((device("gpu-a", 8000),))
    for n in range(40):
        granted(pool.acquire(token(f"n{n}"), "ann", team=f"t{n}", memory_mb=1, ttl_ms=0))
        pool.release(token(f"n{n}"))
    pool.skew(LATE_MS)
    pool.reap_all()
    assert len(pool.hash("usage_total")) == 40
    assert set(pool.look(totals.read(pool.keys, ["t1", "none"])).teams) == {"t1", "none"}
    assert not any("t2" in name for name in samples(pool, "t1"))


def test_totals_that_a_hand_has_spoilt_are_left_out(pool: Pool) -> None:
    """A key of another type, or text that is no sum: the other families of a scrape go on."""
    pool.report((device("gpu-a", 8000),))
    pool.redis.set(pool.keys.usage_total, "spoilt")
    assert samples(pool, "nlp") == {}
    pool.redis.delete(pool.keys.usage_total)
    pool.redis.hset(pool.keys.usage_total, mapping={"nlp": "leases=x gpu_ms=-1", "peak 0.5": "x"})
    assert set(samples(pool, "nlp").values()) == {0}
