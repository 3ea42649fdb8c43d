"""report: what others use on a device. It rises by what nobody leased, falls only when proven."""

from __future__ import annotations

import pytest

from tests.pools import Pool, device, granted, said, token

CROWDED = ["REFUSED", "no_capacity", ""]


def used(pool: Pool, used_mb: int | str, sampled_ms: int = 0, total_mb: int = 24000) -> int:
    """Report what the driver sees on the one device; what the pool thinks is unleased then."""
    pool.report((device("gpu-a", total_mb, used_mb=used_mb),), sampled_ms=sampled_ms)
    return pool.number("gpu-a", "unleased_mb")


def test_report_counts_what_is_not_leased(pool: Pool) -> None:
    """Memory in use beyond all reservations is not there to lease."""
    assert used(pool, 10000) == 10000
    assert pool.free() == {"gpu-a": 14000}
    assert said(pool.acquire(memory_mb=14001)) == CROWDED
    granted(pool.acquire(memory_mb=14000))


def test_report_does_not_hide_an_outsider_behind_an_unused_reservation(pool: Pool) -> None:
    """24,000 in all, 10,000 an outsider's, 12,000 leased of which 2,000 used: 2,000 left."""
    used(pool, 10000)
    granted(pool.acquire(memory_mb=12000))
    assert used(pool, 12000) == 10000
    assert pool.free() == {"gpu-a": 2000}
    assert said(pool.acquire(memory_mb=2001)) == CROWDED
    granted(pool.acquire(memory_mb=2000))


def test_report_lets_unleased_fall_only_when_used_proves_it(pool: Pool) -> None:
    """Less in use than was unleased: the outsider has at most that much."""
    used(pool, 10000)
    granted(pool.acquire(memory_mb=12000))
    for seen, unleased in ((15000, 10000), (22000, 10000), (9000, 9000), (12000, 9000), (500, 500)):
        assert used(pool, seen) == unleased
    assert used(pool, 0) == 0


def test_report_lets_unleased_rise_with_what_no_lease_explains(pool: Pool) -> None:
    """Use beyond the leases is others', be it an agent that takes too much."""
    used(pool, 0)
    granted(pool.acquire(memory_mb=1000))
    assert used(pool, 1000) == 0
    assert used(pool, 1500) == 500
    assert used(pool, 30000) == 29000
    assert pool.free() == {}
    assert used(pool, 1000) == 1000


def test_report_of_use_unknown_keeps_what_was_unleased(pool: Pool) -> None:
    """No news is no proof."""
    used(pool, 5000)
    assert used(pool, "") == 5000
    pool.report((("gpu-a", {"temperature_c": "50"}),))
    assert pool.free() == {"gpu-a": 19000}


def test_report_after_a_release_frees_no_more_than_was_leased(pool: Pool) -> None:
    """A holder that gave back and still uses the memory becomes unleased with the next report."""
    used(pool, 0)
    pool.acquire(token("a"), memory_mb=8000)
    assert used(pool, 8000) == 0
    pool.release(token("a"))
    assert used(pool, 8000) == 8000
    assert pool.free() == {"gpu-a": 16000}
    assert used(pool, 0) == 0


def test_report_of_unleased_use_alone_keeps_a_device_from_being_idle(pool: Pool) -> None:
    """Whole devices are given while others use at most 512 MiB of them."""
    used(pool, 513)
    assert said(pool.acquire(exclusive=1)) == CROWDED
    used(pool, 512)
    assert granted(pool.acquire(exclusive=1)).devices == (("gpu-a", 23488),)


@pytest.mark.parametrize("late", [1, 5000])
def test_report_older_than_one_before_it_frees_nothing(pool: Pool, late: int) -> None:
    """A delayed report with an older sample can only refuse, never free what a newer one saw."""
    now = pool.report((device("gpu-a", 24000),))[1]
    pool.skew(9000)
    assert used(pool, 20000, sampled_ms=now + 9000) == 20000
    assert used(pool, 0, sampled_ms=now + 9000 - late) == 20000
    assert pool.free() == {"gpu-a": 4000}


def test_report_while_memory_is_withheld_counts_it_as_explained(pool: Pool) -> None:
    """Memory that a dead holder may still use is withheld already, not unleased on top."""
    real = {"simulated": 0, "used_mb": 900}
    pool.report((device("gpu-a", 1000, simulated=0),))
    pool.acquire(ttl_ms=1000)
    pool.skew(1001)
    expired_at = pool.reap()[1]
    pool.skew(1000)
    pool.report((device("gpu-a", 1000, **real),), sampled_ms=expired_at + 1)
    assert (pool.number("gpu-a", "withheld_mb"), pool.number("gpu-a", "unleased_mb")) == (900, 0)
    pool.skew(4001)
    pool.report((device("gpu-a", 1000, **real),), sampled_ms=expired_at + 5000)
    assert (pool.number("gpu-a", "withheld_mb"), pool.number("gpu-a", "unleased_mb")) == (0, 900)
    assert pool.free() == {"gpu-a": 100}
