"""Bounded overtaking (L3): devices that are reserved for a head that has waited long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.lua.reserved import DAY_MS, LARGE, kept, live, shared
from tests.lua.waiters import quiet, state, wait
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


def test_keep_begins_at_the_half_minute(pool: Pool) -> None:
    """30,000 ms after joining, to the millisecond."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 27, "large", **LARGE)
    pool.skew(2999)
    wait(pool, "large", **LARGE)
    assert kept(pool) == {}
    pool.skew(1)
    wait(pool, "large", **LARGE)
    assert kept(pool) == {"gpu-a": token("large")}


def test_keep_is_for_a_first_alone(pool: Pool) -> None:
    """A waiter behind another reserves nothing, however long it waits."""
    shared(pool, "gpu-a", "gpu-b")
    for name in ("one", "two"):
        wait(pool, name, **LARGE)
    live(pool, 60, "one", "two", **LARGE)
    assert list(kept(pool).values()) == [token("one")]


def test_keep_is_of_one_device_at_a_time(pool: Pool) -> None:
    """A keeper that goes on waiting keeps the same device, and no second."""
    shared(pool, "gpu-a", "gpu-b")
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    before = kept(pool)
    live(pool, 30, "large", **LARGE)
    assert kept(pool) == before


def test_keep_is_not_taken_from_another_keeper(pool: Pool) -> None:
    """One device, two firsts: it is kept for the one that asked first, and for no other."""
    shared(pool)
    for _ in range(12):
        wait(pool, "one", **LARGE)
        wait(pool, "two", exclusive=1, **LARGE)
        pool.skew(3000)
    assert kept(pool) == {"gpu-a": token("one")}
    audit(pool.redis, pool.keys)


def test_keep_is_of_a_device_that_could_hold_it(pool: Pool) -> None:
    """Not the one with most free, which is too small, but one that is full and large enough."""
    pool.report((device("gpu-b"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("b"), exclusive=1, ttl_ms=0))
    pool.report((device("gpu-a", 800), device("gpu-b")), deadline_ms=DAY_MS)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert kept(pool) == {"gpu-b": token("large")}


def test_keep_is_of_the_device_with_most_free(pool: Pool) -> None:
    """The one that is nearest to being free, not the largest."""
    pool.report((device("gpu-a", 5000),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("a"), memory_mb=4900, ttl_ms=0))
    pool.report((device("gpu-a", 5000), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    granted(pool.acquire(token("b"), memory_mb=200, ttl_ms=0))
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert kept(pool) == {"gpu-b": token("large")}


def test_keep_is_of_the_model_that_was_asked_for(pool: Pool) -> None:
    """A host's larger device of another model is none of its business."""
    pool.report((device("gpu-a", model="m1"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("a"), memory_mb=500, ttl_ms=0))
    pool.report((device("gpu-a"), device("gpu-b", 2000, model="m2", index=1)), deadline_ms=DAY_MS)
    here = LARGE | {"host": "h1", "model": "m1"}
    wait(pool, "large", **here)
    live(pool, 33, "large", **here)
    assert kept(pool) == {"gpu-a": token("large")}


def test_keep_of_several_is_of_as_many_or_none(pool: Pool) -> None:
    """Half of what is wanted would serve no waiter: a host with one device drained is none."""
    shared(pool, "gpu-a", "gpu-b")
    pool.drain("gpu-b")
    two = {"devices": 2, "memory_mb": 500}
    wait(pool, "two", **two)
    live(pool, 33, "two", **two)
    assert kept(pool) == {}
    pool.drain("gpu-b", drained=0)
    live(pool, 3, "two", **two)
    assert set(kept(pool)) == {"gpu-a", "gpu-b"}


def test_keeper_is_offered_its_device_by_who_frees_it(pool: Pool) -> None:
    """L1: the keeper need not poll to be served, neither with one device nor with two."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    pool.release(token("on-gpu-a"))
    assert state(pool, "large") == "offered"


def test_keeper_of_two_is_offered_them_by_who_frees_the_second(pool: Pool) -> None:
    """S5: none of them before both are idle, both then, and no other gets one in between."""
    shared(pool, "gpu-a", "gpu-b")
    two = {"devices": 2, "memory_mb": 500}
    wait(pool, "two", **two)
    live(pool, 33, "two", **two)
    wait(pool, "behind", memory_mb=300)
    pool.release(token("on-gpu-a"))
    assert (state(pool, "two"), state(pool, "behind")) == ("waiting", "waiting")
    pool.release(token("on-gpu-b"))
    assert (state(pool, "two"), state(pool, "behind")) == ("offered", "waiting")


def test_keeper_of_two_is_offered_another_with_one_of_its_own(pool: Pool) -> None:
    """S11: what comes back and what is kept are two as well; that was left to its next poll."""
    shared(pool, "gpu-a", "gpu-b", "gpu-c")
    two = {"devices": 2, "memory_mb": 500}
    wait(pool, "two", **two)
    live(pool, 33, "two", **two)
    mine = sorted(kept(pool))
    (other,) = {"gpu-a", "gpu-b", "gpu-c"} - {*mine}
    pool.release(token(f"on-{mine[0]}"))
    assert state(pool, "two") == "waiting"
    pool.release(token(f"on-{other}"))
    assert state(pool, "two") == "offered"
    taken = pool.hash(f"record:{token('two')}")["devices"].split(",")
    assert {part.partition("=")[0] for part in taken} == {mine[0], other}
    assert kept(pool) == {}


def test_keeper_finds_its_device_at_its_poll(pool: Pool) -> None:
    """Room on it that no device told of, after a policy, is the keeper's."""
    shared(pool)
    pool.set_policy(allow_fractional_shares=0)
    ask = {"memory_mb": 500}
    wait(pool, "ann", **ask)
    live(pool, 33, "ann", **ask)
    assert kept(pool) == {"gpu-a": token("ann")}
    pool.set_policy(allow_fractional_shares=1)
    assert wait(pool, "ann", **ask)[0] == "GRANTED"
    assert kept(pool) == {}


def test_kept_device_goes_whole_to_one_before_its_keeper(pool: Pool) -> None:
    """Rank decides, for whole devices too."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    wait(pool, "before", exclusive=1, priority=9)
    pool.release(token("on-gpu-a"))
    assert (state(pool, "before"), state(pool, "large")) == ("offered", "waiting")


def test_keep_of_a_device_that_shrank_moves_on(pool: Pool) -> None:
    """A device that can hold its keeper no more is kept in vain: for all, and for the keeper."""
    shared(pool, "gpu-a", "gpu-b")
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    (keeping,) = kept(pool)
    pool.report((device(keeping, 800),), deadline_ms=DAY_MS)
    live(pool, 6, "large", **LARGE)
    other = "gpu-b" if keeping == "gpu-a" else "gpu-a"
    assert kept(pool) == {other: token("large")}


def test_kept_device_that_is_held_alone_is_shared_with_nobody(pool: Pool) -> None:
    """S1: a device that grew beside its exclusive holder has room, and none for its keeper."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("alone"), exclusive=1, ttl_ms=0))
    wait(pool, "ann")
    live(pool, 33, "ann")
    assert kept(pool) == {"gpu-a": token("ann")}
    pool.report((device("gpu-a", 2000),), deadline_ms=DAY_MS)
    assert pool.number("gpu-a", "leased_mb") == 1000
    assert wait(pool, "ann") == ["WAITING", 0]
    pool.release(token("alone"))
    assert state(pool, "ann") == "offered"


def test_kept_device_with_less_than_was_asked_is_not_offered(pool: Pool) -> None:
    """Idle, and yet others use some of it: the keeper waits until there is as much as it asked."""
    shared(pool)
    whole = LARGE | {"exclusive": 1}
    wait(pool, "large", **whole)
    live(pool, 33, "large", **whole)
    reply = pool.report((device("gpu-a", used_mb=400),), deadline_ms=DAY_MS)
    pool.release(token("on-gpu-a"))
    assert pool.hash("device:gpu-a")["leases"] == "0"
    assert wait(pool, "large", **whole) == ["WAITING", 0]
    pool.skew(10)
    pool.report((device("gpu-a", used_mb=0),), sampled_ms=reply[1] + 1, deadline_ms=DAY_MS)
    assert state(pool, "large") == "offered"


def test_kept_device_that_may_be_shared_again_without_growing_goes_to_its_keeper(
    pool: Pool,
) -> None:
    """S11: it grew under an exclusive lease that has expired, and what that had is withheld."""
    pool.report((device("gpu-a", 1000, simulated=0),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("alone"), exclusive=1, memory_mb=1000, ttl_ms=60_000))
    pool.report((device("gpu-a", 3000, simulated=0),), deadline_ms=DAY_MS)
    wait(pool, "large", memory_mb=1500)
    live(pool, 57, "large", memory_mb=1500)
    assert kept(pool) == {"gpu-a": token("large")}
    pool.skew(3500)
    pool.reap()
    assert pool.number("gpu-a", "withheld_mb") == 1000
    assert state(pool, "large") == "offered"


def test_kept_device_that_is_whole_again_without_growing_goes_to_its_keeper(pool: Pool) -> None:
    """L1: what a dead lease's process still uses is unleased now."""
    real = device("gpu-a", simulated=0)
    pool.report((real,), deadline_ms=DAY_MS)
    granted(pool.acquire(token("dies"), memory_mb=300, ttl_ms=45_000))
    whole = {"exclusive": 1, "memory_mb": 600}
    wait(pool, "whole", **whole)
    live(pool, 42, "whole", **whole)
    assert kept(pool) == {"gpu-a": token("whole")}
    pool.skew(3001)
    pool.reap()
    still = device("gpu-a", simulated=0, used_mb=300, reported_unleased_mb=0, cooling_used_mb=300)
    pool.report((still,), deadline_ms=DAY_MS, sampled_ms=pool.reap()[1])
    wait(pool, "whole", **whole)
    pool.skew(5001)
    pool.reap()
    assert state(pool, "whole") == "offered"
