"""Bounded overtaking (L3): after 30 s a device is kept for a head that the small ones pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lua.reserved import DAY_MS, LARGE, kept, live, shared
from tests.lua.waiters import quiet, wait
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Callable


def test_device_is_kept_after_half_a_minute_and_not_before(pool: Pool) -> None:
    """The small ones may pass before; from then on no request behind gets that device."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 27, "large", **LARGE)
    granted(pool.acquire(token("passes"), "small", memory_mb=300))
    pool.release(token("passes"))
    assert kept(pool) == {}
    live(pool, 3, "large", **LARGE)
    assert kept(pool) == {"gpu-a": token("large")}
    assert pool.free() == {}
    assert said(pool.acquire(memory_mb=300)) == ["REFUSED", "no_capacity", ""]
    pool.release(token("on-gpu-a"))
    assert wait(pool, "large", **LARGE)[0] == "GRANTED"
    assert kept(pool) == {}
    quiet(pool)


def test_large_is_not_starved_by_a_stream_of_small_ones(pool: Pool) -> None:
    """Small leases of 10 s come all the time; the large one has its device within a minute."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("s0"), "small", memory_mb=300, ttl_ms=10_000))
    wait(pool, "large", **LARGE)
    for second in range(1, 60):
        pool.skew(1000)
        if second % 3 == 0 and wait(pool, "large", **LARGE)[0] == "GRANTED":
            break
        ask = {"memory_mb": 300, "ttl_ms": 10_000}
        pool.acquire(token(f"s{second}"), "small", **ask)
    else:
        pytest.fail("starved")
    assert 30 <= second <= 30 + 10 + 3


def test_only_one_device_is_kept_and_others_go_on(pool: Pool) -> None:
    """A keep costs one device, the one with most free; the rest of the host serves the small."""
    shared(pool, "gpu-a", "gpu-b")
    granted(pool.acquire(token("more"), "little", memory_mb=100, ttl_ms=0, placement="pack"))
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert len(kept(pool)) == 1
    assert len(pool.free()) == 1
    granted(pool.acquire(memory_mb=300))


def test_keeper_that_is_served_elsewhere_lets_its_device_go(pool: Pool) -> None:
    """The keep is a promise of at least that one: another that fits first ends it."""
    shared(pool, "gpu-a", "gpu-b")
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    (keeping,) = kept(pool)
    other = "gpu-b" if keeping == "gpu-a" else "gpu-a"
    pool.release(token(f"on-{other}"))
    assert pool.hash(f"record:{token('large')}")["devices"] == f"{other}=1000"
    assert kept(pool) == {}
    assert keeping in pool.free()


ENDS: dict[str, Callable[[Pool], object]] = {
    "leaves": lambda p: p.release(token("large")),
    "is revoked": lambda p: p.revoke(token("large")),
    "waits no more": lambda p: wait(p, "large", wait_ms=0, **LARGE),
}


@pytest.mark.parametrize("how", ENDS)
def test_keep_ends_with_the_wait(pool: Pool, how: str) -> None:
    """A device that was reserved is free for all again, and goes to the next waiter."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert wait(pool, "small", memory_mb=300) == ["WAITING", 0]
    ENDS[how](pool)
    assert kept(pool) == {}
    assert pool.hash(f"record:{token('small')}")["state"] == "offered"


def test_keep_ends_when_its_keeper_times_out(pool: Pool) -> None:
    """A dead keeper holds its device for the 10 s of a heartbeat."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    pool.skew(9000)
    pool.reap()
    assert kept(pool)
    pool.skew(1001)
    pool.reap()
    assert kept(pool) == {}
    quiet(pool)


GONE: dict[str, Callable[[Pool], object]] = {
    "drained": lambda p: p.drain("gpu-a"),
    "its host drained": lambda p: p.drain("h1", "host"),
    "lost": lambda p: p.report((device("gpu-a", state="lost"),), deadline_ms=DAY_MS),
    "moved": lambda p: p.report((device("gpu-a"),), host="h2", deadline_ms=DAY_MS),
}


@pytest.mark.parametrize("how", GONE)
def test_keep_ends_when_the_device_cannot_serve(pool: Pool, how: str) -> None:
    """A device that is drained, lost or elsewhere is kept for nobody."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    GONE[how](pool)
    assert kept(pool) == {}
    if how in {"lost", "moved"}:
        return
    assert wait(pool, "large", **LARGE)[0] == "WAITING"
    assert kept(pool) == {}


def test_keep_ends_when_the_host_is_away(pool: Pool) -> None:
    """A silent host serves nobody: its waiter keeps nothing there."""
    pool.report((device("gpu-a"),), deadline_ms=40_000)
    granted(pool.acquire(token("x"), "little", memory_mb=100, ttl_ms=0))
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert kept(pool)
    live(pool, 9, "large", **LARGE)
    assert pool.hash("device:gpu-a")["state"] == "away"
    assert kept(pool) == {}


def test_kept_device_goes_to_those_before_its_keeper_in_rank(pool: Pool) -> None:
    """Rank decides still: one with priority gets what comes back on it, one behind does not."""
    shared(pool)
    granted(pool.acquire(token("half"), "little", memory_mb=800, ttl_ms=0))
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert kept(pool) == {"gpu-a": token("large")}
    wait(pool, "behind", memory_mb=200)
    wait(pool, "before", memory_mb=300, priority=9)
    pool.release(token("half"))
    assert pool.hash(f"record:{token('before')}")["state"] == "offered"
    assert pool.hash(f"record:{token('behind')}")["state"] == "waiting"


def test_several_devices_are_kept_on_one_host(pool: Pool) -> None:
    """Two whole GPUs: as each becomes idle it stays so, until both are."""
    shared(pool, "gpu-a", "gpu-b", "gpu-c")
    two = {"devices": 2, "memory_mb": 500}
    wait(pool, "two", **two)
    live(pool, 33, "two", **two)
    assert set(kept(pool).values()) == {token("two")}
    assert len(kept(pool)) == 2
    for uuid in kept(pool):
        pool.release(token(f"on-{uuid}"))
    got = granted(pool.acquire(token("two"), "two", wait_ms=1, **two))
    assert len(got.devices) == 2
    assert kept(pool) == {}


def test_second_first_keeps_another_device(pool: Pool) -> None:
    """Each head keeps one, and none of them two."""
    shared(pool, "gpu-a", "gpu-b")
    wait(pool, "one", **LARGE)
    wait(pool, "two", exclusive=1, **LARGE)
    for _ in range(11):
        pool.skew(3000)
        wait(pool, "one", **LARGE)
        wait(pool, "two", exclusive=1, **LARGE)
    assert sorted(kept(pool).values()) == sorted([token("one"), token("two")])
