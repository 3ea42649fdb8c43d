"""The pool's clock: what a step back, a leap forward, an outage or a quiet night do to leases."""

from __future__ import annotations

import pytest

from tests.pools import Pool, device, granted, said, token

HOUR_MS = 3_600_000


def overdue_by_a_leap(pool: Pool, leap_ms: int = 11_000) -> None:
    """Lease `late` (100 MiB) that ended inside a leap of the clock."""
    granted(pool.acquire(token("late"), memory_mb=100, ttl_ms=5000))
    pool.skew(leap_ms)


def test_clock_that_steps_back_never_shows_in_now(gpu: Pool) -> None:
    """now_ms never goes back: it stands until TIME is past it, or goes on from there."""
    seen = gpu.reap()[1]
    for step in (-1, -400, -5000, 2000, -HOUR_MS, 9000, -24 * HOUR_MS):
        gpu.skew(step)
        now = gpu.reap()[1]
        assert now >= seen, f"after a step of {step} ms"
        seen = now


@pytest.mark.parametrize("since_last_ms", [1, 499])
def test_clock_that_steps_back_right_after_a_script_never_shows_in_now(
    gpu: Pool, since_last_ms: int
) -> None:
    """now_ms never goes back, though last_ms is written only every 500 ms."""
    gpu.skew(since_last_ms)
    seen = gpu.acquire()[1]
    gpu.skew(-HOUR_MS)
    assert gpu.reap()[1] >= seen


def test_clock_that_steps_back_stretches_no_lease(gpu: Pool) -> None:
    """After a step back of an hour a lease of 30 s still ends after 30 s."""
    granted(gpu.acquire(token("a")))
    gpu.skew(-HOUR_MS)
    gpu.reap()
    gpu.live_on(30000)
    assert granted(gpu.acquire(token("a"))).remaining_ms == 0
    gpu.skew(1)
    assert said(gpu.renew(token("a"))) == ["LOST", "expired"]


def test_clock_that_steps_back_twice_stretches_no_lease(gpu: Pool) -> None:
    """Each step back is made good by itself."""
    granted(gpu.acquire(token("a")))
    for _ in range(3):
        gpu.skew(-HOUR_MS)
        gpu.reap()
        gpu.live_on(10000)
    gpu.skew(1)
    assert said(gpu.renew(token("a"))) == ["LOST", "expired"]


def test_clock_that_steps_back_and_forward_again_ends_no_lease_early(gpu: Pool) -> None:
    """The way back to the right time is a leap like any other: holders come first."""
    first = granted(gpu.acquire(token("a")))
    gpu.skew(-HOUR_MS)
    gpu.reap()
    gpu.skew(HOUR_MS)
    again = granted(gpu.acquire(token("a")))
    assert (again.fence, again.remaining_ms) == (first.fence, 0)
    assert gpu.renew(token("a"))[0] == "RENEWED"


@pytest.mark.parametrize("step_ms", [5001, 9000, 10_000])
def test_clock_step_under_ten_seconds_counts_in_full(gpu: Pool, step_ms: int) -> None:
    """It is ordinary time: no window, and leases that are over are over."""
    overdue_by_a_leap(gpu, step_ms)
    assert said(gpu.renew(token("late"))) == ["LOST", "expired"]
    assert gpu.free() == {"gpu-a": 1000}


def test_clock_leap_lets_holders_come_first(gpu: Pool) -> None:
    """After a leap an overdue lease repeats with nothing left, and a renewal takes it up again."""
    overdue_by_a_leap(gpu)
    fence = gpu.redis.hget(gpu.keys.record(token("late")), "fence")
    again = granted(gpu.acquire(token("late"), memory_mb=100, ttl_ms=5000))
    assert (str(again.fence), again.remaining_ms) == (fence, 0)
    assert said(gpu.renew(token("late"), fence))[2] == 5000
    assert gpu.redis.get(gpu.keys.lease("gpu-a", token("late"))) == fence
    assert granted(gpu.acquire(token("late"), memory_mb=100, ttl_ms=5000)).remaining_ms == 5000
    gpu.skew(5001)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 900}, "within the window it may come late once more"


def test_clock_leap_gives_overdue_leases_back_after_thirty_seconds(gpu: Pool) -> None:
    """The window is 30 s: who has not renewed by then is gone."""
    overdue_by_a_leap(gpu)
    gpu.reap()
    gpu.live_on(29_999)
    assert gpu.free() == {"gpu-a": 900}
    assert granted(gpu.acquire(token("late"), memory_mb=100, ttl_ms=5000)).remaining_ms == 0
    gpu.skew(1)
    assert said(gpu.renew(token("late"))) == ["LOST", "expired"]
    assert gpu.free() == {"gpu-a": 1000}


def test_clock_leap_takes_back_what_was_over_before_it(gpu: Pool) -> None:
    """A lease that was due before the leap had its time, and is taken back in the window too."""
    for n in range(20):
        granted(gpu.acquire(token(n), memory_mb=10, ttl_ms=1000))
    granted(gpu.acquire(token("late"), memory_mb=100, ttl_ms=8000))
    gpu.skew(2000)
    assert gpu.reap()[4] == 1, "4 of the 20 are left behind"
    gpu.skew(11_000)
    assert gpu.reap()[4] == 0
    assert gpu.free() == {"gpu-a": 900}
    assert gpu.renew(token("late"))[0] == "RENEWED"
    assert said(gpu.renew(token(19))) == ["LOST", "expired"]


def test_clock_leap_opens_the_window_for_whoever_calls_first(gpu: Pool) -> None:
    """The renewal itself may be the first script after the outage."""
    overdue_by_a_leap(gpu, HOUR_MS)
    assert said(gpu.renew(token("late")))[2] == 5000
    gpu.live_on(4000)
    assert gpu.renew(token("late"))[0] == "RENEWED"


def test_clock_leap_inside_the_window_begins_it_anew(gpu: Pool) -> None:
    """S7: no holder's time to renew is cut short by the second leap, nor by the third."""
    overdue_by_a_leap(gpu)
    gpu.reap()
    for leap_ms in (11_000, 28_900, HOUR_MS):
        gpu.skew(1000)
        gpu.reap()
        gpu.skew(leap_ms)
        now = gpu.reap()[1]
        assert int(gpu.hash("pool")["window_until_ms"]) == now + 30_000
    gpu.live_on(29_000)
    assert gpu.renew(token("late"))[0] == "RENEWED"


def test_clock_leap_after_four_in_a_row_ends_what_was_due_before_it(gpu: Pool) -> None:
    """S7 says so: else a lease in a pool that only leaps would never end."""
    overdue_by_a_leap(gpu)
    for _ in range(4):
        gpu.reap()
        assert gpu.stats().get("expired", 0) == 0
        gpu.skew(11_000)
    gpu.report((device("gpu-a", 1000),))
    assert gpu.stats()["expired"] == 1
    granted(gpu.acquire(token("new"), memory_mb=100, ttl_ms=5000))
    gpu.skew(11_000)
    assert gpu.renew(token("new"))[0] == "RENEWED"


def test_clock_leap_keeps_what_an_outage_before_it_left(gpu: Pool) -> None:
    """A failover inside the window of a leap: the ten seconds of the failover count in full."""
    overdue_by_a_leap(gpu)
    gpu.reap()
    gpu.live_on(29_000)
    gpu.redis.hset(gpu.keys.pool, "run_id", "1")
    gpu.by_hand()
    gpu.skew(500)
    gpu.reap()
    gpu.live_on(9_900)
    assert gpu.renew(token("late"))[0] == "RENEWED"


def test_clock_leap_leaves_free_capacity_to_grant(gpu: Pool) -> None:
    """New leases go on from what is free; what is overdue is not given twice."""
    overdue_by_a_leap(gpu)
    granted(gpu.acquire(memory_mb=900))
    assert said(gpu.acquire(memory_mb=1)) == ["REFUSED", "no_capacity", ""]


def test_clock_leap_lets_an_overdue_lease_be_released(gpu: Pool) -> None:
    """Giving back is never too late in the window."""
    overdue_by_a_leap(gpu)
    assert said(gpu.release(token("late"))) == ["RELEASED"]
    assert gpu.free() == {"gpu-a": 1000}


def test_clock_leap_takes_no_host_away_that_reports_in_the_window(gpu: Pool) -> None:
    """A reporter that slept as long as everybody else comes back in time."""
    gpu.skew(HOUR_MS)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 1000}
    gpu.live_on(31_000, devices=(device("gpu-a", 1000),))
    assert gpu.free() == {"gpu-a": 1000}
    assert "host_away" not in gpu.events()


def test_clock_leap_takes_a_host_away_that_stays_silent(gpu: Pool) -> None:
    """After the window its deadline counts."""
    gpu.skew(HOUR_MS)
    gpu.reap()
    gpu.live_on(31_000, host="other")
    assert gpu.free() == {}


def test_clock_of_an_idle_pool_still_ends_leases(gpu: Pool) -> None:
    """A pool that is called every 15 s leaps at each call; a lease ends all the same."""
    overdue_by_a_leap(gpu, 15_000)
    for _ in range(4):
        gpu.reap()
        assert gpu.stats().get("expired", 0) == 0
        gpu.skew(15_000)
    gpu.reap()
    assert gpu.stats()["expired"] == 1
    assert said(gpu.renew(token("late"))) == ["LOST", "expired"]


def test_clock_leap_never_takes_a_renewal_past_max_hold(gpu: Pool) -> None:
    """In the window too, max_hold_ms is the end."""
    got = granted(gpu.acquire(token("a"), ttl_ms=5000, max_hold_ms=8000))
    gpu.skew(11_000)
    assert said(gpu.renew(token("a")))[1:] == [got.now_ms + 8000, 0, ""]
    gpu.live_on(30_000)
    assert said(gpu.renew(token("a"))) == ["LOST", "expired"]


def test_clock_of_a_full_day_of_ordinary_time_opens_no_window(gpu: Pool) -> None:
    """While a host reports every 5 s nothing looks like a leap."""
    gpu.live_on(600_000)
    pool = gpu.hash("pool")
    assert (pool["window_until_ms"], pool["offset_ms"]) == ("0", "0")
