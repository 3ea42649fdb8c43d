"""Cooling: after an expiry on a real device its memory is withheld until it is seen to be free."""

from __future__ import annotations

import pytest

from tests.pools import Pool, device, granted, said, token, uuids

REFUSED = ["REFUSED", "no_capacity", ""]


def real(used_mb: int | str = 0, total_mb: int = 1000, uuid: str = "gpu-a") -> tuple[object, ...]:
    """A report of one real device."""
    return (device(uuid, total_mb, simulated=0, used_mb=used_mb),)


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with one real device of 1000 MiB, whose lease of 900 expired 1 ms ago."""
    pool.report(real())
    pool.acquire(token("dead"), ttl_ms=1000)
    pool.skew(1001)
    return pool


def test_reap_on_a_real_device_withholds_until_the_grace_is_over(gpu: Pool) -> None:
    """For expiry_grace_s after the expiry was noticed, nobody gets the memory; then anybody."""
    expired_at = gpu.reap()[1]
    assert gpu.number("gpu-a", "withheld_mb") == 900
    assert gpu.hash("agents") == {}, "the agent's sum does not wait"
    assert not gpu.redis.exists(gpu.keys.lease("gpu-a", token("dead")))
    assert gpu.redis.zscore(gpu.keys.deadlines, token("dead")) == expired_at + 5000
    gpu.skew(5000)
    assert said(gpu.acquire()) == REFUSED
    gpu.skew(1)
    assert uuids(gpu.acquire()) == ["gpu-a"]
    assert gpu.ended(token("dead")) == "expired"
    assert gpu.events()[-3:] == ["expired", "cooled", "granted"]


def test_reap_withholds_for_as_long_as_the_policy_says(gpu: Pool) -> None:
    """expiry_grace_s is read when the lease expires; 0 gives back at once."""
    gpu.policy(expiry_grace_s=0)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 1000}
    gpu.policy(expiry_grace_s=9)
    gpu.acquire(token("next"), ttl_ms=1000)
    gpu.skew(1001)
    now = gpu.reap()[1]
    assert gpu.redis.zscore(gpu.keys.deadlines, token("next")) == now + 9000


def test_reap_on_a_simulated_device_withholds_nothing(pool: Pool) -> None:
    """Nothing runs on a simulated device that could outlive its lease."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(ttl_ms=1000)
    pool.skew(1001)
    pool.reap()
    assert pool.free() == {"gpu-a": 1000}


def test_report_of_a_device_that_says_nothing_of_simulation_is_taken_as_real(pool: Pool) -> None:
    """Only what says that it is simulated is spared the grace."""
    uuid, fields = device("gpu-a", 1000)
    del fields["simulated"]
    pool.report(((uuid, fields),))
    pool.acquire(ttl_ms=1000)
    pool.skew(1001)
    pool.reap()
    assert pool.number("gpu-a", "withheld_mb") == 900


def test_report_sampled_after_the_expiry_that_shows_it_free_ends_the_grace(gpu: Pool) -> None:
    """Once the driver says that the memory is free, nobody waits for the grace."""
    expired_at = gpu.reap()[1]
    gpu.skew(2000)
    gpu.report(real(), sampled_ms=expired_at + 1)
    assert gpu.free() == {"gpu-a": 1000}
    granted(gpu.acquire(token("next")))
    gpu.live_on(6000)
    assert gpu.free() == {"gpu-a": 100}, "the end of the grace subtracts nothing twice"
    assert gpu.ended(token("dead")) == "expired"


@pytest.mark.parametrize("sampled", [-1, 0], ids=["before", "at"])
def test_report_sampled_no_later_than_the_expiry_ends_no_grace(gpu: Pool, sampled: int) -> None:
    """A sample that may be older than the death proves nothing."""
    expired_at = gpu.reap()[1]
    gpu.report(real(), sampled_ms=expired_at + sampled)
    assert gpu.number("gpu-a", "withheld_mb") == 900


def test_report_of_unknown_sample_time_ends_no_grace(gpu: Pool) -> None:
    """sampled_ms=0: nobody knows when it was, so it proves nothing."""
    gpu.reap()
    gpu.skew(100)
    gpu.report(real(), sampled_ms=0)
    assert gpu.number("gpu-a", "withheld_mb") == 900


@pytest.mark.parametrize("used_mb", [1, 900, 1000, ""])
def test_report_that_shows_the_memory_in_use_ends_no_grace(gpu: Pool, used_mb: int | str) -> None:
    """While more is used than leases and others explain, or while nobody knows, it is withheld."""
    expired_at = gpu.reap()[1]
    gpu.skew(100)
    gpu.report(real(used_mb), sampled_ms=expired_at + 50)
    assert gpu.number("gpu-a", "withheld_mb") == 900
    assert sum(gpu.free().values()) <= 100


def test_report_that_shows_what_others_hold_in_use_ends_the_grace(pool: Pool) -> None:
    """used ≤ leased + unleased: the rest of what is used is explained by who is still there."""
    pool.report(real(50))
    pool.acquire(token("lives"), memory_mb=300)
    pool.acquire(token("dead"), memory_mb=400, ttl_ms=1000)
    pool.skew(1001)
    expired_at = pool.reap()[1]
    pool.report(real(351), sampled_ms=expired_at + 1)
    assert pool.number("gpu-a", "withheld_mb") == 400
    pool.skew(5)
    pool.report(real(350), sampled_ms=expired_at + 2)
    assert pool.free() == {"gpu-a": 1000 - 300 - 50}


def test_report_between_two_expiries_on_one_device_ends_neither_grace(pool: Pool) -> None:
    """The proof must be later than the last death on the device."""
    pool.report(real())
    pool.acquire(token("first"), memory_mb=300, ttl_ms=1000)
    pool.acquire(token("second"), memory_mb=400, ttl_ms=3000)
    pool.skew(1001)
    first_at = pool.reap()[1]
    pool.skew(2000)
    second_at = pool.reap()[1]
    pool.report(real(), sampled_ms=first_at + 1000)
    assert pool.number("gpu-a", "withheld_mb") == 700
    pool.skew(first_at + 5001 - second_at)
    pool.reap()
    assert pool.number("gpu-a", "withheld_mb") == 400
    pool.skew(2000)
    pool.reap()
    assert pool.free() == {"gpu-a": 1000}


def test_report_early_for_two_that_cool_ends_both_graces_once(pool: Pool) -> None:
    """One proof frees all that cooled before it; what dies later cools by itself."""
    pool.report(real())
    for n, ttl_ms in ((1, 1000), (2, 2000), (3, 4000)):
        pool.acquire(token(n), memory_mb=n * 100, ttl_ms=ttl_ms)
    pool.skew(1001)
    pool.reap()
    pool.skew(1000)
    second_at = pool.reap()[1]
    assert pool.number("gpu-a", "withheld_mb") == 300
    pool.skew(500)
    pool.report(real(300), sampled_ms=second_at + 1)
    assert pool.number("gpu-a", "withheld_mb") == 0
    pool.skew(1500)
    pool.reap()
    assert pool.number("gpu-a", "withheld_mb") == 300, "the third died after the proof"
    pool.live_on(4000)
    assert pool.number("gpu-a", "withheld_mb") == 300, "the ends of the first two take nothing"
    pool.live_on(1001)
    assert pool.free() == {"gpu-a": 1000}
    assert pool.events().count("cooled") == 3


def test_acquire_exclusive_waits_for_a_device_that_cools(gpu: Pool) -> None:
    """Idle means that nobody is on it, not even a dead one's memory."""
    gpu.reap()
    assert said(gpu.acquire(exclusive=1, memory_mb=1)) == REFUSED
    assert granted(gpu.acquire(memory_mb=100)).devices == (("gpu-a", 100),)


def test_reap_of_several_devices_cools_each(pool: Pool) -> None:
    """Each device of the lease is withheld, and proven free, for itself."""
    pool.report(real() + real(uuid="gpu-b"))
    pool.acquire(token("dead"), devices=2, ttl_ms=1000)
    pool.skew(1001)
    expired_at = pool.reap()[1]
    assert pool.free() == {}
    pool.skew(10)
    pool.report(real() + real(700, uuid="gpu-b"), sampled_ms=expired_at + 5)
    assert pool.free() == {"gpu-a": 1000}
    pool.live_on(5000)
    assert pool.free() == {"gpu-a": 1000, "gpu-b": 1000}


def test_release_of_a_lease_on_a_real_device_never_cools(pool: Pool) -> None:
    """A holder that gives back is done with the device: no grace."""
    pool.report(real())
    pool.acquire(token("a"))
    pool.release(token("a"))
    assert pool.free() == {"gpu-a": 1000}


def test_reap_of_a_device_that_shrank_while_cooling_over_commits_nothing(gpu: Pool) -> None:
    """Withheld memory is subtracted from the memory that the device has now."""
    gpu.reap()
    gpu.report(real(total_mb=500))
    assert gpu.free() == {}
    gpu.live_on(5001)
    assert gpu.free() == {"gpu-a": 500}
