"""Fences: strictly growing integers, exact as text, whatever clocks and crashes do (S3)."""

from __future__ import annotations

import itertools

import pytest

from tests.pools import Pool, device, granted, said, token


def fences(pool: Pool, count: int) -> list[int]:
    """The fences of as many grants, each given back at once."""
    found = []
    for n in range(count):
        name = token(f"{len(pool.events())}.{n}")
        found.append(granted(pool.acquire(name)).fence)
        pool.release(name)
    return found


def grows(found: list[int]) -> bool:
    """Each is larger than the one before."""
    return all(a < b for a, b in itertools.pairwise(found))


def test_acquire_fences_strictly_grow(pool: Pool) -> None:
    """Every grant, on GPU or CPU, has a larger fence than all before, within one µs too."""
    pool.report((device("gpu-a", 1000),))
    found = fences(pool, 20)
    found.append(granted(pool.acquire(memory_mb=2000, on_unavailable="cpu")).fence)
    pool.skew(3000)
    found += fences(pool, 3)
    assert grows(found)


def test_acquire_fence_is_the_clock_in_microseconds(pool: Pool) -> None:
    """A fence starts from TIME: after lost writes or a failover it still goes on growing."""
    reply = pool.report((device("gpu-a", 1000),))
    pool.skew(2)
    fence = granted(pool.acquire()).fence
    assert fence // 1000 == reply[1] + 2


def test_acquire_fence_goes_on_growing_after_time_stepped_back(pool: Pool) -> None:
    """A clock that steps back an hour repeats no fence."""
    pool.report((device("gpu-a", 1000),))
    found = fences(pool, 3)
    pool.skew(-3_600_000)
    found += fences(pool, 3)
    assert grows(found)


@pytest.mark.parametrize("ahead_us", [1, 10**12, 9_007_199_254_740_000 - 1_800_000_000_000_000])
def test_acquire_fence_stored_in_the_future_is_followed_exactly(pool: Pool, ahead_us: int) -> None:
    """A stored fence ahead of the clock is raised by one, exact to the last digit, as text."""
    pool.report((device("gpu-a", 1000),))
    stored = granted(pool.acquire(token("first"))).fence + ahead_us
    pool.release(token("first"))
    pool.redis.hset(pool.keys.pool, "fence", stored)
    pool.by_hand()
    for n in range(1, 4):
        reply = pool.acquire(token(n))
        assert reply[5] == str(stored + n)
        assert pool.hash("pool")["fence"] == str(stored + n)
        assert pool.hash(f"record:{token(n)}")["fence"] == str(stored + n)
        assert pool.redis.get(pool.keys.lease("gpu-a", token(n))) == str(stored + n)
        assert said(pool.renew(token(n), str(stored + n)))[0] == "RENEWED"
        pool.release(token(n))


def test_acquire_fence_of_a_pool_made_anew_is_larger_than_before(pool: Pool) -> None:
    """The next fence is larger although the pool's data are lost: it comes from the clock."""
    pool.report((device("gpu-a", 1000),))
    found = fences(pool, 3)
    for key in pool.stored():
        pool.redis.delete(key)
        pool.by_hand()
    pool.skew(1)
    pool.report((device("gpu-a", 1000),))
    found += fences(pool, 1)
    assert grows(found)


def test_acquire_fence_is_told_by_every_key_and_event(pool: Pool) -> None:
    """Record, lease key, reply, pool and event all show the same fence."""
    pool.report((device("gpu-a", 1000),))
    fence = pool.acquire(token("a"))[5]
    assert pool.redis.get(pool.keys.lease("gpu-a", token("a"))) == fence
    assert pool.hash(f"record:{token('a')}")["fence"] == fence
    assert pool.hash("pool")["fence"] == fence
    [(_, event)] = pool.redis.xrevrange(pool.keys.events, count=1)
    assert event == {
        "event": "granted", "token": token("a"), "agent": "agent", "devices": "gpu-a=900",
        "fence": fence,
    }  # fmt: skip
