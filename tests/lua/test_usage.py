"""Usage: each lease counts once, on the days on which it ran, with what its host has seen."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.pools import Pool, device, granted, said, token
from tests.usage import DAY_MS, HOUR_MS, LATE_MS, day_of, history, let, numbers, sums, use


@pytest.fixture
def one(pool: Pool) -> Pool:
    """A GPU of 8,000 MiB, at noon of a day, with the clock in the test's hand."""
    noon = int(datetime(2027, 2, 28, 12, tzinfo=UTC).timestamp())
    pool.redis.set(f"{pool.keys.base}:test_frozen_us", noon * 1_000_000)
    pool.report((device("gpu-a", 8000),), deadline_ms=DAY_MS)
    return pool


@pytest.fixture
def two(one: Pool) -> Pool:
    """A second one beside it."""
    one.report((device("gpu-b", 8000, index=1),), deadline_ms=DAY_MS)
    return one


def end(pool: Pool, name: str) -> None:
    assert said(pool.release(token(name))) == ["RELEASED"]
    let(pool, LATE_MS)


def test_lease_is_counted_when_it_ends(one: Pool) -> None:
    """An hour of half a GPU: time, GPU-time by its share, MiB-time; by who and by where."""
    granted(one.acquire(token("1"), "ann", team="nlp", memory_mb=4000, ttl_ms=0))
    let(one, HOUR_MS)
    assert sums(one, "2027-02-28") == {}
    end(one, "1")
    expected = {"leases": 1, "held_ms": HOUR_MS, "gpu_ms": HOUR_MS // 2, "mb_ms": 4000 * HOUR_MS}
    assert sums(one, "2027-02-28") == {"nlp ann m1": expected}
    assert sums(one, "2027-02-28", ":hosts") == {"h1|m1": expected}
    hours = one.hash("usage:2027-02-28:hosts")["h1|m1"].partition("hours=")[2].split(",")
    assert hours == ["0"] * 12 + [str(HOUR_MS // 2)] + ["0"] * 11
    assert {name: numbers(line) for name, line in one.hash("usage_total").items()} == {
        "nlp": expected
    }
    assert not one.redis.exists(one.keys.ended)


def test_finished_lease_is_remembered(one: Pool) -> None:
    """Its holder, its devices, its time, and its outcome are kept."""
    began = int(one.reap()[1])
    granted(one.acquire(token("1"), "ann", team="nlp", owner="key-1", memory_mb=4000, ttl_ms=0))
    let(one, 60_000)
    end(one, "1")
    assert history(one) == [
        {
            "token": token("1"), "agent": "ann", "team": "nlp", "owner": "key-1", "host": "h1",
            "model": "m1", "devices": "gpu-a=4000", "outcome": "released", "gpus": "0.5",
            "granted_at_ms": str(began), "ended_at_ms": str(began + 60_000),
        }
    ]  # fmt: skip


def test_lease_over_midnight_is_split(two: Pool) -> None:
    """Each day has its part; the lease and its wait count on the day of its end."""
    granted(two.acquire(token("1"), "ann", memory_mb=8000, ttl_ms=0))
    assert said(two.acquire(token("2"), "bob", devices=2, exclusive=1, ttl_ms=0,
                            wait_ms=7 * DAY_MS))[0] == "WAITING"  # fmt: skip
    let(two, 36 * HOUR_MS)
    end(two, "1")
    assert sums(two, "2027-02-28")["default ann m1"] == {
        "held_ms": 12 * HOUR_MS, "gpu_ms": 12 * HOUR_MS, "mb_ms": 8000 * 12 * HOUR_MS
    }  # fmt: skip
    assert sums(two, "2027-03-01")["default ann m1"] == {
        "leases": 1, "held_ms": 24 * HOUR_MS, "gpu_ms": 24 * HOUR_MS, "mb_ms": 8000 * 24 * HOUR_MS
    }  # fmt: skip
    hours = two.hash("usage:2027-03-01:hosts")["h1|m1"].partition("hours=")[2].split(",")
    assert hours == [str(HOUR_MS)] * 24


def test_gang_and_exclusive_count_whole_devices(two: Pool) -> None:
    """Two devices for an hour are two GPU-hours of one lease, whatever it asked of each."""
    granted(two.acquire(token("1"), "ann", devices=2, exclusive=1, memory_mb=100, ttl_ms=0))
    let(two, HOUR_MS)
    end(two, "1")
    assert sums(two, "2027-02-28")["default ann m1"] == {
        "leases": 1, "held_ms": HOUR_MS, "gpu_ms": 2 * HOUR_MS, "mb_ms": 16000 * HOUR_MS
    }  # fmt: skip


def test_wait_is_counted_with_its_lease(two: Pool) -> None:
    """The time that a lease waited, of those that did."""
    granted(two.acquire(token("1"), "ann", devices=2, exclusive=1, ttl_ms=0))
    ask: dict[str, Any] = {"memory_mb": 8000, "ttl_ms": 0, "wait_ms": 60_000}
    assert said(two.acquire(token("2"), "bob", **ask))[0] == "WAITING"
    let(two, 5000)
    two.release(token("1"))
    granted(two.acquire(token("2"), "bob", **ask))
    let(two, 1000)
    end(two, "2")
    bob = sums(two, "2027-02-28")["default bob m1"]
    assert (bob["waits"], bob["waited_ms"], bob["held_ms"]) == (1, 5000, 1000)
    assert "waits" not in sums(two, "2027-02-28")["default ann m1"]
    assert history(two)[-1]["waited_ms"] == "5000"


def test_expired_lease_counts_until_its_end(one: Pool) -> None:
    """Not until it was noticed; memory that cools counts for none."""
    one.report((device("gpu-a", 8000, simulated=0),), deadline_ms=DAY_MS)
    granted(one.acquire(token("1"), "ann", memory_mb=4000, ttl_ms=5000))
    let(one, 8000)
    let(one, LATE_MS)
    assert sums(one, "2027-02-28")["default ann m1"]["held_ms"] == 5000
    event: Any = [e for _, e in one.redis.xrange(one.keys.events) if e["event"] == "expired"]
    assert int(event[0]["ended_at_ms"]) == int(history(one)[0]["ended_at_ms"])


def test_every_way_to_end_counts_once(one: Pool) -> None:
    """Revoked at the holder's next word, by force, by renew_many, and a repeat of each."""
    for n in range(1, 5):
        granted(one.acquire(token(str(n)), "ann", memory_mb=100, ttl_ms=60_000))
    let(one, 1000)
    one.revoke(token("1"))
    one.revoke(token("2"), force=1)
    one.revoke(token("3"))
    assert said(one.renew(token("1")))[0] == "LOST"
    assert said(one.renew_many((token("3"), "", "")))[0] == "OUTCOMES"
    one.release(token("4"))
    for n in range(1, 5):
        one.release(token(str(n)))
        one.renew(token(str(n)))
    let(one, LATE_MS)
    ann = sums(one, "2027-02-28")["default ann m1"]
    assert (ann["leases"], ann["held_ms"]) == (4, 4000)
    assert [e["outcome"] for e in history(one)] == ["revoked"] * 3 + ["released"] or [
        e["outcome"] for e in history(one)
    ] == ["revoked", "revoked", "revoked", "released"]


def test_lease_on_the_cpu_counts_its_time_alone(one: Pool) -> None:
    """It has no GPU, so no GPU-time."""
    one.acquire(token("1"), "ann", memory_mb=90_000, on_unavailable="cpu", ttl_ms=0)
    let(one, 1000)
    end(one, "1")
    assert sums(one, "2027-02-28") == {"default ann cpu": {"leases": 1, "held_ms": 1000}}


def test_many_ends_are_folded_by_the_calls_that_make_them(one: Pool) -> None:
    """Without a broker that reaps, what waits to be added stays bounded, and nothing is lost."""
    for n in range(1300):
        granted(one.acquire(token(f"n{n}"), "ann", memory_mb=100, ttl_ms=0))
        one.skew(1)
        one.release(token(f"n{n}"))
        assert one.redis.llen(one.keys.ended) <= 1024
    let(one, LATE_MS)
    one.reap_all()
    ann = sums(one, "2027-02-28")["default ann m1"]
    assert (ann["leases"], ann["held_ms"], ann["mb_ms"]) == (1300, 1300, 130_000)
    assert len(history(one)) == 1300


def test_what_the_host_has_seen_goes_into_the_sums(one: Pool) -> None:
    """Busy, known and idle time by the lease's share, memory above its peak, energy."""
    granted(one.acquire(token("1"), "ann", memory_mb=4000, ttl_ms=0))
    t = let(one, 10_000)
    use(one, "gpu-a", f"{token('1')}={t}:{t}::1000:")
    let(one, 20_000)
    use(one, "gpu-a", f"{token('1')}={t}:{t + 20_000}:5000:3000:7000")
    assert one.hash("use:gpu-a")[token("1")] == (
        f"until_ms={t + 20_000} known_ms=20000 busy_ms=5000 peak_mb=3000 energy_mj=7000"
    )
    let(one, 10_000)
    end(one, "1")
    ann = sums(one, "2027-02-28")["default ann m1"]
    assert ann == {
        "leases": 1, "held_ms": 40_000, "gpu_ms": 20_000, "mb_ms": 4000 * 40_000,
        "known_gpu_ms": 10_000, "busy_gpu_ms": 2500, "above_mb_ms": 1000 * 40_000,
        "energy_mj": 7000,
    }  # fmt: skip
    assert one.hash("usage_total")["peak 0.75"] == "1"
    last = history(one)[0]
    told = ("known_ms", "busy_ms", "peak_mb", "energy_mj")
    assert [last[name] for name in told] == ["20000", "5000", "3000", "7000"]
    assert one.hash("use:gpu-a") == {}


def test_interval_counts_once_however_often_it_is_told(one: Pool) -> None:
    """A repeat after a lost answer, and one that overlaps, add nothing."""
    granted(one.acquire(token("1"), "ann", memory_mb=4000, ttl_ms=0))
    t = let(one, 30_000)
    word = f"{token('1')}={t - 20_000}:{t - 10_000}:10000:1:1"
    for _ in range(3):
        use(one, "gpu-a", word)
    use(one, "gpu-a", f"{token('1')}={t - 15_000}:{t}:15000:9:9")
    assert numbers(one.hash("use:gpu-a")[token("1")])["busy_ms"] == 10_000
    use(one, "gpu-a", f"{token('1')}={t - 10_000}:{t}:20000:2:1")
    assert one.hash("use:gpu-a")[token("1")] == (
        f"until_ms={t} known_ms=20000 busy_ms=20000 peak_mb=2 energy_mj=2"
    )


def test_list_that_tells_of_a_lease_twice_counts_each_interval_once(one: Pool) -> None:
    """Two intervals of one list add up, whichever is new; the third is a repeat of the second."""
    granted(one.acquire(token("1"), "ann", memory_mb=4000, ttl_ms=0))
    t = let(one, 30_000)
    first, second, third = (
        f"{token('1')}={t + n}:{t + n + 1000}:500:{peak_mb}:7"
        for n, peak_mb in ((0, 10), (1000, 30), (2000, 20))
    )
    use(one, "gpu-a", first, second, second)
    assert one.hash("use:gpu-a")[token("1")] == (
        f"until_ms={t + 2000} known_ms=2000 busy_ms=1000 peak_mb=30 energy_mj=14"
    )
    use(one, "gpu-a", second, third)
    assert one.hash("use:gpu-a")[token("1")] == (
        f"until_ms={t + 3000} known_ms=3000 busy_ms=1500 peak_mb=30 energy_mj=21"
    )


def test_number_that_no_sum_can_hold_is_not_taken(one: Pool) -> None:
    """One host's endless number would be in the sums of its team for ever."""
    granted(one.acquire(token("1"), "ann", memory_mb=4000, ttl_ms=0))
    t = let(one, 1000)
    numbers_of = [str(t), str(t + 1000), "1", "1", "1"]
    for n in range(5):
        endless = [*numbers_of[:n], "9" * 400, *numbers_of[n + 1 :]]
        use(one, "gpu-a", f"{token('1')}={':'.join(endless)}")
        assert one.hash("use:gpu-a") == {}
    use(one, "gpu-a", f"{token('1')}={':'.join(numbers_of)}")
    assert set(one.hash("use:gpu-a")) == {token("1")}


def test_first_word_about_a_lease_that_is_over_is_not_taken(one: Pool) -> None:
    """Nothing would take it away again; later words about one that is known are taken."""
    granted(one.acquire(token("1"), "ann", memory_mb=100, ttl_ms=0))
    granted(one.acquire(token("2"), "ann", memory_mb=100, ttl_ms=0))
    t = let(one, 5000)
    use(one, "gpu-a", f"{token('1')}={t}:{t}::5:")
    for name in "12":
        one.release(token(name))
    one.skew(4000)
    use(one, "gpu-a", f"{token('1')}={t}:{t + 4000}:4000:5:", f"{token('2')}={t}:{t + 4000}:1:1:1")
    assert set(one.hash("use:gpu-a")) == {token("1")}
    let(one, LATE_MS)
    assert not one.redis.exists(one.keys.use("gpu-a"))
    use(one, "gpu-a", f"{token('1')}={t + 4000}:{t + 5000}:1000:5:")
    assert not one.redis.exists(one.keys.use("gpu-a"))
    assert sums(one, "2027-02-28")["default ann m1"]["leases"] == 2


@pytest.mark.parametrize("bad", ["x=1:2", "t=a:b:c:d:e", "=", "junk", "t=1:2:3:4:5:6=", ",,"])
def test_word_of_no_form_adds_nothing(one: Pool, bad: str) -> None:
    """Text that cannot be read is refused, or left out; the report goes on."""
    use(one, "gpu-a", bad)
    assert not one.redis.exists(one.keys.use("gpu-a"))


def test_sums_of_a_day_go_after_the_time_that_the_policy_says(one: Pool) -> None:
    """`usage_days` after the day's end, set anew with each fold."""
    one.set_policy(usage_days=30)
    granted(one.acquire(token("1"), "ann", memory_mb=100, ttl_ms=0))
    let(one, 1000)
    end(one, "1")
    for key in (one.keys.usage("2027-02-28"), one.keys.usage_of_hosts("2027-02-28")):
        left_ms: Any = one.redis.pttl(key)
        assert 30 * DAY_MS + 11 * HOUR_MS < left_ms <= 30 * DAY_MS + 12 * HOUR_MS
    assert one.redis.pttl(one.keys.usage_total) == -1


def test_history_is_as_long_as_the_policy_says(one: Pool) -> None:
    """About so many, and none is remembered with 0; the sums have all of them."""
    one.set_policy(history_leases=0)
    for n in range(300):
        granted(one.acquire(token(f"n{n}"), "ann", memory_mb=100, ttl_ms=0))
        one.release(token(f"n{n}"))
    let(one, LATE_MS)
    one.reap_all()
    assert len(history(one)) < 150
    assert sums(one, "2027-02-28")["default ann m1"]["leases"] == 300


@pytest.mark.parametrize(
    "day",
    ["1970-01-01", "1999-12-31", "2000-02-29", "2026-11-30", "2028-02-29", "2100-03-01"],
)
def test_days_are_those_of_the_calendar(pool: Pool, day: str) -> None:
    """Leap years, centuries, ends of months: as the calendar has them."""
    pool.freeze()
    at_ms = int(datetime.fromisoformat(f"{day}T23:59:58+00:00").timestamp() * 1000)
    pool.redis.set(f"{pool.keys.base}:test_frozen_us", max(at_ms, 1) * 1000)
    pool.report((device("gpu-a", 8000),), deadline_ms=DAY_MS)
    pool.policy(usage_days=100_000)
    granted(pool.acquire(token("1"), "ann", memory_mb=100, ttl_ms=0))
    pool.skew(1000)
    end(pool, "1")
    assert sums(pool, day)["default ann m1"]["held_ms"] == 1000
    assert day_of(at_ms) == day


def test_share_of_a_team_and_its_sums_are_one_truth(one: Pool) -> None:
    """Shares without decay are what the sums say that teams have used."""
    one.set_policy(half_life_s=0)
    one.set_teams(nlp="weight=2", vision="weight=1")
    for n in range(40):
        team = ("nlp", "vision")[n % 2]
        granted(one.acquire(token(f"n{n}"), f"agent-{n % 5}", team=team, memory_mb=100 + n,
                            ttl_ms=0))  # fmt: skip
        let(one, 1000 * n)
        if n % 3:
            one.release(token(f"n{n - 1}"))
    for n in range(40):
        one.release(token(f"n{n}"))
    let(one, LATE_MS)
    one.reap_all()
    for team in ("nlp", "vision"):
        use = float(one.hash("agents")[f"team {team}#use"].partition("@")[0])
        said_ms = numbers(one.hash("usage_total")[team])["mb_ms"]
        assert use == pytest.approx(said_ms / 1000, rel=1e-12)
        assert said_ms > 0


def test_names_that_differ_with_each_job_fill_no_store(one: Pool) -> None:
    """Beyond 500 of a day new agents count together in their team, beyond 1,000 teams too."""
    for n in range(1530):
        team = "nlp" if n < 510 else f"team-{n}"
        granted(one.acquire(token(str(n)), f"job-{n}", team=team, memory_mb=1000, ttl_ms=0))
        one.skew(10)
        one.release(token(str(n)))
        if n % 100 == 0:
            let(one, LATE_MS)
    for _ in range(20):
        let(one, LATE_MS)
    found = sums(one, "2027-02-28")
    assert found["nlp job-0 m1"] == {"leases": 1, "held_ms": 10, "gpu_ms": 1, "mb_ms": 10_000}
    own = {name for name in found if "(others)" not in name}
    assert own == {f"nlp job-{n} m1" for n in range(499)}
    assert found["nlp (others) m1"]["leases"] == 11
    assert (len(found), found["(others) (others) m1"]["leases"]) == (1000, 1020 - 499)
    for rows in (found, sums(one, "2027-02-28", ":hosts"), sums_of_teams(one)):
        assert sum(row["leases"] for row in rows.values()) == 1530
        assert sum(row["mb_ms"] for row in rows.values()) == 1530 * 10_000
    assert len(sums_of_teams(one)) == 500


def sums_of_teams(pool: Pool) -> dict[str, dict[str, int]]:
    return {name: numbers(line) for name, line in pool.hash("usage_total").items()}
