"""release: capacity is back in the same script, once, and nothing is granted after it."""

from __future__ import annotations

import pytest

from tests.pools import Pool, device, granted, said, token

T = token("t")


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with one device of 1000 MiB, a real one: releases never cool."""
    pool.report((device("gpu-a", 1000, simulated=0),))
    return pool


def test_release_gives_the_memory_back_at_once(gpu: Pool) -> None:
    """Everything the lease held is free when the answer is there; no grace, no leftover."""
    before = gpu.stored()
    gpu.acquire(T)
    assert said(gpu.release(T)) == ["RELEASED"]
    after = gpu.stored()
    assert after.pop(gpu.keys.done(T)).endswith(f"r{gpu.reap()[1]:011x}")
    assert len(after.pop(gpu.keys.ended)) == 1
    assert gpu.stats() == {"granted": 1, "released": 1}
    for memory in (before, after):
        del memory[gpu.keys.events]
        del memory[gpu.keys.pool]["fence"]
        for counter in ("granted", "released"):
            memory[gpu.keys.pool].pop(counter, None)
    assert after == before


def test_release_twice_tells_that_it_was_over(gpu: Pool) -> None:
    """A duplicate changes nothing and says how the lease ended."""
    gpu.acquire(T)
    gpu.release(T)
    before = gpu.stored()
    for plant in (0, 1):
        assert said(gpu.release(T, plant)) == ["ALREADY", "released"]
    assert gpu.stored() == before


def test_release_of_a_token_nobody_had_plants_a_tombstone(gpu: Pool) -> None:
    """Its acquire may still be on its way: for 15 minutes it is refused."""
    assert said(gpu.release(T)) == ["UNKNOWN"]
    assert gpu.ended(T) == "released"
    assert 890_000 < gpu.redis.pttl(gpu.keys.done(T)) <= 900_000
    assert said(gpu.release(T)) == ["ALREADY", "released"]
    assert gpu.stats() == {}, "nothing was given back"


def test_release_without_planting_writes_nothing(gpu: Pool) -> None:
    """plant=0 is for doors that make their own tokens."""
    before = gpu.stored()
    assert said(gpu.release(T, plant=0)) == ["UNKNOWN"]
    assert gpu.stored() == before


def test_release_of_an_expired_lease_says_so(gpu: Pool) -> None:
    """Cooling or cold, the lease ended by expiry and this call did not end it."""
    gpu.acquire(T, ttl_ms=1000)
    gpu.skew(1001)
    assert said(gpu.release(T)) == ["ALREADY", "expired"]
    assert gpu.number("gpu-a", "withheld_mb") == 900, "a release does not cut the grace short"
    gpu.live_on(6000)
    assert said(gpu.release(T)) == ["ALREADY", "expired"]
    assert gpu.free() == {"gpu-a": 1000}


def test_release_removes_the_agent_with_its_last_lease(gpu: Pool) -> None:
    """No field stays at zero in `agents`."""
    gpu.acquire(token("1"), "one", memory_mb=100)
    gpu.acquire(token("2"), "one", memory_mb=200)
    gpu.acquire(token("3"), "two", memory_mb=9999, on_unavailable="cpu")
    assert gpu.agents() == {
        "one": "300", "one#leases": "2", "two": "0", "two#leases": "1",
    }  # fmt: skip
    gpu.release(token("1"))
    assert gpu.agents()["one"] == "200"
    gpu.release(token("3"))
    assert gpu.agents() == {"one": "200", "one#leases": "1"}
    gpu.release(token("2"))
    assert gpu.agents() == {}


def test_release_of_several_devices_gives_all_back(pool: Pool) -> None:
    """All lease keys go in one script, and each device is idle again (S5)."""
    pool.report(tuple(device(f"gpu-{n}", 1000 + n) for n in range(4)))
    before = pool.free()
    pool.acquire(T, devices=4)
    assert len(list(pool.redis.scan_iter(f"{pool.keys.base}:lease:*"))) == 4
    pool.release(T)
    assert not list(pool.redis.scan_iter(f"{pool.keys.base}:lease:*"))
    assert pool.free() == before
    assert len(granted(pool.acquire(devices=4)).devices) == 4


def test_release_of_one_of_several_shares_leaves_the_others(gpu: Pool) -> None:
    """Each lease gives back its own share."""
    for n in range(3):
        gpu.acquire(token(n), memory_mb=300)
    gpu.release(token(1))
    assert gpu.free() == {"gpu-a": 400}
    assert gpu.renew(token(0))[0] == gpu.renew(token(2))[0] == "RENEWED"
    assert not gpu.redis.exists(gpu.keys.lease("gpu-a", token(1)))


def test_release_on_a_drained_or_lost_device_does_not_list_it_again(pool: Pool) -> None:
    """Giving back never makes a device grantable that should take nothing."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 900)))
    pool.acquire(token("a"))
    pool.acquire(token("b"), exclusive=1)
    pool.report((device("gpu-b", 900, state="lost"),))
    pool.drain("gpu-a")
    pool.release(token("a"))
    pool.release(token("b"))
    assert pool.free() == {}
    assert said(pool.acquire(memory_mb=1)) == ["REFUSED", "no_capacity", ""]


def test_release_works_in_safe_mode_and_in_a_closed_pool(gpu: Pool) -> None:
    """Giving back is always welcome."""
    gpu.acquire(T)
    gpu.policy(safe_mode=1, closed_until_ms=9_999_999_999_999)
    assert said(gpu.release(T)) == ["RELEASED"]


def test_release_of_everything_leaves_only_the_registry(gpu: Pool) -> None:
    """L5: when all is quiet and the tombstones are old, no key tells of leases but the sums."""
    for n in range(5):
        gpu.acquire(token(n), f"agent{n}", memory_mb=100)
    for n in range(5):
        gpu.release(token(n))
    gpu.redis.delete(*(gpu.keys.done(token(n)) for n in range(5)))
    gpu.by_hand()
    gpu.skew(9000)
    gpu.reap()
    gpu.skew(4000)
    gpu.reap()
    kinds = {key.removeprefix(gpu.keys.base).split(":")[1] for key in gpu.stored()}
    assert kinds == {
        "pool", "events", "deadlines", "hosts", "host", "devices", "device", "models",
        "fits", "free", "idle", "idlehosts", "history", "usage", "usage_total",
    }  # fmt: skip
    assert gpu.redis.zrange(gpu.keys.deadlines, 0, -1) == ["host:h1"]
