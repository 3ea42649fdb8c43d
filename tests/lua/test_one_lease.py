"""Devices that take one lease at a time, and the unleased use beside which a device is whole."""

from __future__ import annotations

from tests.pools import Pool, device, granted, said, token

ALONE = {"one_lease": "its compute mode is exclusive", "simulated": 1}
CROWDED = ["REFUSED", "no_capacity", ""]


def test_device_of_one_lease_takes_no_second_one(pool: Pool) -> None:
    """A lease counts what it asked, and is alone until it ends."""
    pool.report((device("gpu-a", 2000, **ALONE),))
    assert granted(pool.acquire(token("one"), memory_mb=300)).devices == (("gpu-a", 300),)
    assert pool.hash("device:gpu-a")["exclusive"] == token("one")
    assert said(pool.acquire(token("two"), memory_mb=300)) == CROWDED
    assert said(pool.acquire(token("all"), exclusive=1)) == CROWDED
    pool.release(token("one"))
    assert granted(pool.acquire(token("three"), exclusive=1)).devices == (("gpu-a", 2000),)


def test_device_that_may_be_shared_again_takes_the_next_lease(pool: Pool) -> None:
    """A report without the reason lifts it; leases that were there stay in either case."""
    pool.report((device("gpu-a", 2000),))
    for name in ("one", "two"):
        granted(pool.acquire(token(name), memory_mb=300))
    pool.report((device("gpu-a", 2000, **ALONE),))
    assert said(pool.acquire(token("three"), memory_mb=300)) == CROWDED
    pool.release(token("one"))
    assert said(pool.acquire(token("three"), memory_mb=300)) == CROWDED
    pool.report((device("gpu-a", 2000, one_lease=""),))
    granted(pool.acquire(token("three"), memory_mb=300))
    assert pool.hash("device:gpu-a")["leases"] == "2"


def test_waiter_is_offered_a_device_of_one_lease_when_that_ends(pool: Pool) -> None:
    """And of two waiters one: the other goes on waiting."""
    pool.report((device("gpu-a", 2000, **ALONE),))
    granted(pool.acquire(token("one"), memory_mb=300))
    for name in ("two", "three"):
        assert pool.acquire(token(name), memory_mb=300, wait_ms=60_000)[0] == "WAITING"
    pool.release(token("one"))
    states = [pool.hash(f"record:{token(name)}")["state"] for name in ("two", "three")]
    assert states == ["offered", "waiting"]


def test_device_of_one_lease_is_free_only_after_its_grace(pool: Pool) -> None:
    """The next lease waits for memory of an expired one, however little it was."""
    pool.report((device("gpu-a", 2000, one_lease="mode", simulated=0),))
    granted(pool.acquire(token("one"), memory_mb=300, ttl_ms=1000))
    pool.skew(1001)
    pool.reap()
    assert said(pool.acquire(token("two"), memory_mb=300)) == CROWDED
    pool.live_on(6000)
    granted(pool.acquire(token("two"), memory_mb=300))


def test_whole_device_is_lent_beside_as_much_use_as_its_host_says(pool: Pool) -> None:
    """A desktop's use counts as none up to that; what it uses is not lent."""
    used = {"used_mb": 1331, "simulated": 0}
    pool.report((device("gpu-a", 24_000, **used, idle_unleased_mb=512),))
    assert said(pool.acquire(exclusive=1)) == CROWDED
    pool.report((device("gpu-a", 24_000, **used, idle_unleased_mb=2048),))
    assert granted(pool.acquire(token("whole"), exclusive=1)).devices == (("gpu-a", 22_669),)
    pool.release(token("whole"))
    pool.report((device("gpu-a", 24_000, **used),))  # an older reporter does not say
    granted(pool.acquire(token("again"), exclusive=1))
    pool.release(token("again"))
    pool.report((device("gpu-a", 24_000, **used, idle_unleased_mb=0),))
    assert said(pool.acquire(exclusive=1)) == CROWDED


def test_cap_counts_the_whole_beside_what_a_desktop_uses(pool: Pool) -> None:
    """No whole device is above an agent's cap for the memory that others may use there."""
    row = {"used_mb": 1331, "simulated": 0}
    pool.report((device("gpu-a", 24_000, **row, idle_unleased_mb=2048),))
    pool.policy(max_memory_per_agent_mb=23_000)
    assert granted(pool.acquire(token("whole"), exclusive=1)).devices == (("gpu-a", 22_669),)
    assert said(pool.acquire(token("other"), "other", exclusive=1))[1] == "no_capacity"
    pool.release(token("whole"))
    pool.report((device("gpu-a", 24_000, **row, idle_unleased_mb=512),))
    assert said(pool.acquire(exclusive=1))[1] == "agent_cap"
