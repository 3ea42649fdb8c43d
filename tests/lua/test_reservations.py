"""Reservations: their devices, their horizon, and their use by others meanwhile."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from agent_sdk import NoCapacity
from agent_sdk.protocol import operator
from agent_sdk.protocol.messages import Answer
from tests.lua.reserved import DAY_MS, LARGE, kept, live, shared
from tests.lua.waiters import state, wait
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Callable

TWO = {"devices": 2, "memory_mb": 500}
CODE = ["REFUSED", "agent_cap", ""]


def half_full(pool: Pool) -> None:
    """Two devices; one is idle, on the other a little is held for good."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    granted(pool.acquire(token("on-gpu-a"), "little", memory_mb=100, ttl_ms=0, placement="pack"))


def held_device(pool: Pool) -> str:
    """The device on which the first lease is."""
    return pool.hash(f"record:{token('on-gpu-a')}")["devices"].partition("=")[0]


def pass_by(pool: Pool, seconds: int, **asks: dict[str, object]) -> None:
    """Let so many seconds pass; these poll every three of them until they get an offer."""
    for _ in range(seconds // 3):
        pool.skew(3000)
        for name, ask in asks.items():
            if state(pool, name) == "waiting":
                wait(pool, name, **ask)


# A horizon.


def test_devices_that_go_unused_return_to_the_others_after_the_horizon(pool: Pool) -> None:
    """L1: `run --gpus 2` beside a lease without end: 1 GiB requests wait a minute, not for ever."""
    half_full(pool)
    small = {"memory_mb": 300}
    wait(pool, "two", **TWO)
    live(pool, 30, "two", **TWO)
    assert len(kept(pool)) == 2
    assert wait(pool, "small", **small) == ["WAITING", 0]
    pass_by(pool, 57, small=small, two=TWO)
    assert (state(pool, "small"), len(kept(pool))) == ("waiting", 2)
    pass_by(pool, 3, small=small, two=TWO)
    assert (state(pool, "small"), kept(pool)) == ("offered", {})
    assert wait(pool, "two", **TWO) == ["WAITING", 0]
    assert "reservation_ended" in pool.events()


def test_share_beside_a_holder_without_end_returns_too(pool: Pool) -> None:
    """The same for one large share: what is free beside the holder is not idle for ever."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    wait(pool, "small", memory_mb=300)
    pass_by(pool, 63, small={"memory_mb": 300}, large=LARGE)
    assert state(pool, "small") == "offered"


def test_end_of_an_older_lease_extends_a_reservation(pool: Pool) -> None:
    """L3: as long as one holder after another ends, the devices stay reserved."""
    pool.report(tuple(device(f"gpu-{n}", index=n) for n in range(3)), deadline_ms=DAY_MS)
    for n in range(3):
        granted(pool.acquire(token(n), "little", memory_mb=100, ttl_ms=0))
    three = TWO | {"devices": 3}
    wait(pool, "three", **three)
    live(pool, 33, "three", **three)
    for n in range(3):
        live(pool, 54, "three", **three)
        assert len(kept(pool)) == 3
        pool.release(token(n))
    assert state(pool, "three") == "offered"


def test_end_of_a_younger_lease_extends_nothing(pool: Pool) -> None:
    """One with a better rank may use what is reserved, and never makes it last longer."""
    shared(pool)
    granted(pool.acquire(token("some"), "little", memory_mb=100, ttl_ms=0))
    urgent = {"memory_mb": 200, "priority": 9}
    wait(pool, "large", **LARGE)
    live(pool, 30, "large", **LARGE)
    assert kept(pool)
    wait(pool, "urgent", **urgent)
    pool.release(token("some"))
    assert wait(pool, "urgent", **urgent)[0] == "GRANTED"
    live(pool, 45, "large", **LARGE)
    pool.release(token("urgent"))
    live(pool, 18, "large", **LARGE)
    assert kept(pool) == {}


def test_reservation_of_what_is_in_use_has_no_end(pool: Pool) -> None:
    """L3: a full device costs no waiter anything: it waits for its holder as long as that takes."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("all"), "holder", memory_mb=1000, ttl_ms=0))
    wait(pool, "large", **LARGE)
    live(pool, 300, "large", **LARGE)
    assert kept(pool) == {"gpu-a": token("large")}
    pool.release(token("all"))
    assert state(pool, "large") == "offered"


def test_devices_rest_before_they_are_reserved_again(pool: Pool) -> None:
    """Heads that take turns must not idle a device for ever."""
    shared(pool)
    heads = {"one": LARGE, "two": LARGE | {"exclusive": 1}, "three": LARGE | {"host": "h1"}}
    for name, ask in heads.items():
        wait(pool, name, **ask)
    reserved = []
    for _ in range(100):
        pool.skew(3000)
        for name, ask in heads.items():
            wait(pool, name, **ask)
        reserved.append(len(kept(pool)))
    runs = "".join(map(str, reserved)).strip("0").split("0")
    assert max(map(len, runs)) <= 22, "reserved for longer than the horizon"
    assert sum(reserved) <= 0.6 * len(reserved), "idle for more than half of the time"


def test_head_rests_twice_as_long_after_each_time_in_vain(pool: Pool) -> None:
    """60, 120, 240 s: what cannot be served costs the others less and less."""
    shared(pool)
    wait(pool, "large", **LARGE)
    starts, last = [], False
    for second in range(0, 900, 3):
        pool.skew(3000)
        wait(pool, "large", **LARGE)
        if kept(pool) and not last:
            starts.append(second)
        last = bool(kept(pool))
    gaps = [b - a for a, b in pairwise(starts)]
    assert [round(gap / 60) for gap in gaps] == [2, 3, 5]


def test_other_devices_are_tried_before_one_that_was_in_vain(pool: Pool) -> None:
    """L3: a holder without end on the freest device does not keep the head from another one."""
    shared(pool, "gpu-a", "gpu-b")
    granted(pool.acquire(token("more"), "little", memory_mb=100, ttl_ms=0))
    (fuller,) = [u for u in ("gpu-a", "gpu-b") if pool.number(u, "leases") == 2]
    other = "gpu-b" if fuller == "gpu-a" else "gpu-a"
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert kept(pool) == {other: token("large")}
    live(pool, 126, "large", **LARGE)
    assert kept(pool) == {fuller: token("large")}


def test_horizon_holds_for_a_head_that_was_displaced(pool: Pool) -> None:
    """One of its size class with a better rank is the head now; its own polls go on."""
    half_full(pool)
    wait(pool, "two", **TWO)
    live(pool, 33, "two", **TWO)
    wait(pool, "sooner", priority=9, **TWO)
    live(pool, 66, "two", "sooner", **TWO)
    assert token("two") not in kept(pool).values()


@pytest.mark.parametrize(("idle_s", "reserved_s"), [(0, 0), (12, 12), (300, 300)])
def test_horizon_is_a_policy(pool: Pool, idle_s: int, reserved_s: int) -> None:
    """0 reserves nothing; a larger one serves large requests whose holders end far apart."""
    shared(pool)
    pool.set_policy(reservation_idle_s=idle_s)
    wait(pool, "large", **LARGE)
    times = 0
    for _ in range(130):
        pool.skew(3000)
        wait(pool, "large", **LARGE)
        times += bool(kept(pool))
        if times and not kept(pool):
            break
    assert reserved_s <= 3 * times <= reserved_s + 6


def test_pool_of_an_older_version_has_a_horizon_too(pool: Pool) -> None:
    """Its reservation has no end noted, and its policy no such field."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    record, terms = pool.keys.record(token("large")), (
        "reservation_mb", "reservation_since_ms", "reservation_until_ms", "reservation_fence",
    )  # fmt: skip
    pool.redis.hdel(record, *terms)
    pool.by_hand()
    pool.redis.hdel(pool.keys.agents, "large#reserved", "team default#reserved")
    pool.by_hand()
    pool.redis.hdel(pool.keys.pool, "reservation_idle_s")
    pool.by_hand()
    live(pool, 66, "large", **LARGE)
    assert kept(pool) == {}


def test_what_an_older_version_left_counts_against_no_agent(pool: Pool) -> None:
    """It knew of no sum, and took none back when the wait ended; nor what it lent."""
    shared(pool)
    pool.policy(max_memory_per_agent_mb=1000)
    pool.redis.hset(pool.keys.agents, "large#reserved", 1000)
    pool.by_hand()
    pool.redis.zadd(f"{pool.keys.base}:backfill", {"gpu-a": 10**15})
    pool.by_hand()
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert pool.agents()["large#reserved"] == "1000"
    assert said(pool.acquire(memory_mb=100, max_hold_ms=1000))[0] == "REFUSED"
    pool.release(token("large"))
    assert "large#reserved" not in pool.agents()


# What can become what is asked.


def test_nothing_is_reserved_beside_memory_that_is_used_without_a_lease(pool: Pool) -> None:
    """A process without a lease does not end with one."""
    pool.report((device("gpu-a", used_mb=300),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("x"), "little", memory_mb=100, ttl_ms=0))
    wait(pool, "large", memory_mb=800)
    live(pool, 60, "large", memory_mb=800)
    assert kept(pool) == {}
    assert wait(pool, "fits", memory_mb=750)[0] == "WAITING"
    live(pool, 33, "fits", memory_mb=700)


def test_no_whole_device_is_reserved_on_which_a_stranger_computes(pool: Pool) -> None:
    """More than a driver and a desktop use: it is no idle device, whichever lease ends."""
    pool.report((device("gpu-a", 4000, used_mb=600),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("x"), "little", memory_mb=100, ttl_ms=0))
    whole = {"exclusive": 1, "memory_mb": 100}
    wait(pool, "whole", **whole)
    live(pool, 60, "whole", **whole)
    assert kept(pool) == {}


def test_reservation_ends_when_a_stranger_takes_the_memory(pool: Pool) -> None:
    """It is looked at anew at each poll."""
    shared(pool)
    wait(pool, "large", **LARGE)
    live(pool, 33, "large", **LARGE)
    assert kept(pool)
    pool.report((device("gpu-a", used_mb=500),), deadline_ms=DAY_MS)
    live(pool, 3, "large", **LARGE)
    assert kept(pool) == {}


def test_larger_devices_than_the_cap_are_not_reserved(pool: Pool) -> None:
    """A smaller one is, though more is free on the larger."""
    pool.report((device("big", 8000, model="m2"), device("fit", 3000)), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=4000)
    for model in ("m1", "m2"):
        granted(pool.acquire(token(model), "little", memory_mb=500, model=model, ttl_ms=0))
    whole = {"exclusive": 1, "memory_mb": 100}
    wait(pool, "whole", **whole)
    live(pool, 33, "whole", **whole)
    assert kept(pool) == {"fit": token("whole")}


def test_what_the_agent_holds_counts(pool: Pool) -> None:
    """A whole device and its own lease together are more than its cap: nothing idles for it."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1200)
    granted(pool.acquire(token("own"), "ann", memory_mb=300, ttl_ms=0))
    granted(pool.acquire(token("bobs"), "bob", memory_mb=300, ttl_ms=0))
    whole = {"exclusive": 1, "memory_mb": 100, "agent": "ann"}
    wait(pool, "whole", **whole)
    live(pool, 60, "whole", **whole)
    assert kept(pool) == {}


def test_reserved_memory_counts_against_the_agent(pool: Pool) -> None:
    """It counts as a lease does: for its other requests, and for its other reservations."""
    shared(pool, "gpu-a", "gpu-b")
    pool.policy(max_memory_per_agent_mb=1400)
    one = {"agent": "ann", "memory_mb": 1000}
    wait(pool, "one", **one)
    live(pool, 33, "one", **one)
    assert pool.agents()["ann#reserved"] == "1000"
    assert said(pool.acquire(token("more"), "ann", memory_mb=500)) == CODE
    granted(pool.acquire(token("less"), "ann", memory_mb=300))
    whole = {"agent": "ann", "memory_mb": 1, "exclusive": 1}
    wait(pool, "two", **whole)
    for _ in range(12):
        live(pool, 3, "one", **one)
        wait(pool, "two", **whole)
    assert list(kept(pool).values()) == [token("one")]
    pool.release(token("one"))
    assert "ann#reserved" not in pool.agents()


def test_waiter_that_a_reservation_parks_comes_back_with_its_end(pool: Pool) -> None:
    """L1: what is reserved for its agent is all that is in its way."""
    shared(pool, "gpu-a", "gpu-b")
    pool.policy(max_memory_per_agent_mb=1200)
    one = {"agent": "ann", "memory_mb": 1000}
    wait(pool, "one", **one)
    live(pool, 33, "one", **one)
    assert wait(pool, "more", agent="ann", memory_mb=300) == ["WAITING", -1]
    pool.release(token("one"))
    assert state(pool, "more") == "offered"


WHOLE: dict[str, dict[str, int]] = {
    "exclusive": {"exclusive": 1, "memory_mb": 1},
    "two": {"devices": 2, "memory_mb": 1},
    "two exclusive": {"devices": 2, "exclusive": 1, "memory_mb": 1},
}


@pytest.mark.parametrize("ask", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("of", [{}, {"host": "h1"}, {"model": "m1"}, {"host": "h1", "model": "m1"}])
def test_whole_devices_above_the_cap_are_refused_at_once(
    pool: Pool, ask: dict[str, int], of: dict[str, str]
) -> None:
    """`agent_cap`, whether it waits or not: the smallest devices that would do are too large."""
    pool.report((device("gpu-a", 9000), device("gpu-b", 8000, index=1)), deadline_ms=DAY_MS)
    smallest = 8000 if ask.get("devices", 1) == 1 else 17_000
    pool.set_policy(max_memory_per_agent_mb=smallest - 1)
    assert wait(pool, "ann", wait_ms=0, **ask, **of) == CODE
    assert wait(pool, "ann", **ask, **of) == CODE
    pool.set_policy(max_memory_per_agent_mb=smallest)
    assert wait(pool, "ann", **ask, **of)[0] == "GRANTED"


def test_share_is_whole_without_fractions(pool: Pool) -> None:
    """A pool of whole devices alone refuses one that is larger than the cap too."""
    pool.report((device("gpu-a", 9000),), deadline_ms=DAY_MS)
    pool.set_policy(max_memory_per_agent_mb=8000, allow_fractional_shares=0)
    assert wait(pool, "ann", memory_mb=100) == CODE


def test_cap_that_falls_refuses_who_waits(pool: Pool) -> None:
    """At its next poll, with nothing left of it."""
    shared(pool, "gpu-a", "gpu-b")
    assert wait(pool, "two", **TWO) == ["WAITING", 0]
    pool.set_policy(max_memory_per_agent_mb=1400)
    assert wait(pool, "two", **TWO) == CODE


def test_device_that_a_desktop_makes_small_enough_is_waited_for(pool: Pool) -> None:
    """A driver's own memory on a device counts against no cap: 8000 less 300 is within 7700."""
    pool.report((device("gpu-a", 8000, used_mb=300),), deadline_ms=DAY_MS)
    pool.set_policy(max_memory_per_agent_mb=7700)
    granted(pool.acquire(token("x"), "little", memory_mb=100, ttl_ms=0))
    assert wait(pool, "ann", exclusive=1, memory_mb=1) == ["WAITING", 0]
    pool.set_policy(max_memory_per_agent_mb=7699)
    assert wait(pool, "bob", exclusive=1, memory_mb=1) == CODE


DEAD: dict[str, Callable[[Pool, tuple[object, ...]], object]] = {
    "away": lambda p, _: (p.skew(5001), p.reap_all()),
    "lost": lambda p, d: p.report(d, host="far", deadline_ms=DAY_MS),
    "drained": lambda p, _: p.drain("far", "host"),
}


@pytest.mark.parametrize("how", DEAD)
def test_dead_devices_hide_no_live_one(pool: Pool, how: str) -> None:
    """L3: however many larger ones there are that are away, lost or drained."""
    for start in range(0, 150, 50):
        names = [f"dead-{n}" for n in range(start, start + 50)]
        pool.report(tuple(device(n, 9000, model="m2") for n in names), host="far", deadline_ms=5000)
        DEAD[how](pool, tuple(device(n, 9000, model="m2", state="lost") for n in names))
    shared(pool)
    granted(pool.acquire(token("rest"), "little", memory_mb=900, ttl_ms=0))
    wait(pool, "large", **LARGE)
    live(pool, 42, "large", **LARGE)
    assert kept(pool) == {"gpu-a": token("large")}


def test_dead_hosts_hide_no_live_one(pool: Pool) -> None:
    """L3: for several devices too, whatever their model, and though they are more than a page."""
    for n in range(20):
        pair = (
            device(f"dead-{n}-0", 900, model=f"a{n % 3}"),
            device(f"dead-{n}-1", 900, model=f"a{n % 3}"),
        )
        pool.report(pair, host=f"far-{n}", deadline_ms=1000)
    pool.skew(5001)
    pool.reap_all()
    shared(pool, "gpu-a", "gpu-b")
    wait(pool, "two", **TWO)
    live(pool, 45, "two", **TWO)
    assert kept(pool) == dict.fromkeys(("gpu-a", "gpu-b"), token("two"))


# EASY backfill.

HOUR_MS = 3_600_000
SHORT = {"memory_mb": 300, "max_hold_ms": 60_000}


def timed(pool: Pool, name: str = "two", ttl_ms: int = 0) -> None:
    """Two devices are reserved for one that waits for a lease that ends within 150 s."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    ask = {"memory_mb": 100, "max_hold_ms": 180_000, "ttl_ms": ttl_ms}
    granted(pool.acquire(token("ends"), "little", **ask))
    wait(pool, name, **TWO)
    live(pool, 30, name, **TWO)
    assert len(kept(pool)) == 2


def test_lease_that_ends_in_time_uses_what_is_reserved(pool: Pool) -> None:
    """It is over before the last device that is needed can be free, so it delays no waiter."""
    timed(pool)
    assert said(pool.acquire(memory_mb=300)) == ["REFUSED", "no_capacity", ""]
    assert said(pool.acquire(**SHORT | {"max_hold_ms": 150_000}))[0] == "REFUSED"
    granted(pool.acquire(token("whole"), "other", exclusive=1, **SHORT))
    granted(pool.acquire(token("in-time"), "other", **SHORT | {"max_hold_ms": 149_999}))
    for name in ("in-time", "whole", "ends"):
        pool.release(token(name))
    assert state(pool, "two") == "offered"


def test_waiter_that_ends_in_time_finds_it_at_its_poll(pool: Pool) -> None:
    """The first of its size class, and one behind another that would not end."""
    timed(pool)
    assert wait(pool, "endless", memory_mb=300) == ["WAITING", 0]
    assert wait(pool, "short", **SHORT)[0] == "GRANTED"
    assert wait(pool, "endless", memory_mb=300) == ["WAITING", 0]


def test_waiter_from_before_the_reservation_finds_it_too(pool: Pool) -> None:
    """One that waited behind its head when the devices were reserved."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    long = {"max_hold_ms": 180_000, "ttl_ms": 0}
    granted(pool.acquire(token("ends"), "little", exclusive=1, memory_mb=100, **long))
    granted(pool.acquire(token("rest"), "little", memory_mb=900, ttl_ms=0))
    wait(pool, "two", **TWO)
    wait(pool, "endless", memory_mb=300)
    wait(pool, "short", **SHORT)
    for _ in range(10):
        live(pool, 3, "two", **TWO)
        wait(pool, "endless", memory_mb=300)
        assert wait(pool, "short", **SHORT) == ["WAITING", 1]
    assert len(kept(pool)) == 2


@pytest.mark.parametrize("by", ["itself", "its team"])
def test_waiter_behind_others_finds_what_it_may_borrow(pool: Pool, by: str) -> None:
    """Whoever says how long it is held at most: the one before it asks for more than is free."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    pool.set_teams(red="max_hold_s=60" if by == "its team" else "")
    for _ in range(2):
        granted(pool.acquire(agent="little", memory_mb=700, max_hold_ms=180_000, ttl_ms=0))
    ask = {"team": "red"} | ({"max_hold_ms": 60_000} if by == "itself" else {})
    wait(pool, "two", **TWO)
    for _ in range(10):
        assert wait(pool, "large", memory_mb=500, **ask) == ["WAITING", 0]
        assert wait(pool, "small", memory_mb=300, **ask) == ["WAITING", 1]
        live(pool, 3, "two", **TWO)
    assert len(kept(pool)) == 2
    assert wait(pool, "small", memory_mb=300, **ask)[0] == "GRANTED"


def test_end_is_not_known_of_a_holder_without_max_hold(pool: Pool) -> None:
    """Its ttl says nothing: it may be renewed for ever."""
    half_full(pool)
    wait(pool, "two", **TWO)
    live(pool, 33, "two", **TWO)
    assert said(pool.acquire(**SHORT | {"max_hold_ms": 1000})) == ["REFUSED", "no_capacity", ""]


def test_end_is_not_known_any_more_when_another_lease_comes(pool: Pool) -> None:
    """One with a better rank took some of what is reserved, and may stay."""
    timed(pool)
    granted(pool.acquire(token("short"), "other", **SHORT))
    urgent = {"memory_mb": 800, "priority": 9}
    assert wait(pool, "urgent", **urgent) == ["WAITING", 0]
    pool.release(token("short"))
    assert state(pool, "urgent") == "offered"
    assert said(pool.acquire(**SHORT)) == ["REFUSED", "no_capacity", ""]


@pytest.mark.parametrize("how", ["shorter", "longer", "without an end", "revoked"])
def test_backfill_ends_by_the_end_that_the_holder_has_now(pool: Pool, how: str) -> None:
    """An operator moves it, or revokes the lease: what is reserved is needed then."""
    timed(pool, ttl_ms=40_000 if how == "shorter" else 0)
    left_ms = {"shorter": 20_000, "longer": 300_000, "without an end": 0, "revoked": 60_000}[how]
    if how == "revoked":
        pool.revoke(token("ends"))
    else:
        assert pool.extend(token("ends"), left_ms)[0] == "EXTENDED"
    late = said(pool.acquire(**SHORT | {"max_hold_ms": left_ms + 1000}))
    assert late == ["REFUSED", "no_capacity", ""]
    if left_ms:
        granted(pool.acquire(token("in-time"), "other", **SHORT | {"max_hold_ms": left_ms - 1000}))


@pytest.mark.parametrize("how", ["released", "revoked", "expired"])
@pytest.mark.parametrize("simulated", [0, 1])
def test_backfill_ends_by_the_end_of_what_is_left(pool: Pool, how: str, simulated: int) -> None:
    """A lease that ended before its time holds nothing back: what is lent to others does."""
    timed(pool, ttl_ms=40_000)
    gpus = (device("gpu-a", simulated=simulated), device("gpu-b", index=1, simulated=simulated))
    pool.report(gpus, deadline_ms=DAY_MS)
    for _ in range(2):
        granted(pool.acquire(agent="other", **SHORT))
    if how == "released":
        pool.release(token("ends"))
    elif how == "revoked":
        pool.revoke(token("ends"), force=1)
    else:
        live(pool, 12, "two", **TWO)
    left_ms = 48_000 if how == "expired" else 60_000
    assert state(pool, "two") == "waiting"
    late = said(pool.acquire(**SHORT | {"max_hold_ms": left_ms + 1000}))
    assert late == ["REFUSED", "no_capacity", ""]
    granted(pool.acquire(token("in-time"), "other", **SHORT | {"max_hold_ms": left_ms - 1000}))


def test_holder_of_what_is_lent_stays_within_that_time(pool: Pool) -> None:
    """Else it would delay the request that waits; an operator decides so, or the first holder."""
    timed(pool)
    granted(pool.acquire(token("short"), "other", **SHORT))
    until_ms = int(pool.hash("pool")["last_ms"]) + 149_999
    for hold_ms in (150_000, 0):
        before = pool.stored()
        refused = pool.extend(token("short"), hold_ms, by="")
        assert said(refused) == ["REFUSED", "no_capacity", str(until_ms)]
        assert pool.stored() == before
        steps = operator.extend_hold(token("short"), hold_ms, by="")
        next(steps)
        with pytest.raises(NoCapacity, match="149 s more at most; an operator may extend it"):
            steps.send(Answer(refused, 0.0))
    assert said(pool.extend(token("short"), 149_999, by="")) == ["EXTENDED", until_ms]
    assert said(pool.extend(token("ends"), 199_999, by="")) == ["EXTENDED", until_ms + 50_000]
    assert said(pool.extend(token("short"), 299_999)) == ["EXTENDED", until_ms + 150_000]


def test_holder_extends_what_is_not_lent_any_more(pool: Pool) -> None:
    """The request for which it was reserved waits no longer."""
    timed(pool)
    granted(pool.acquire(token("short"), "other", **SHORT))
    pool.release(token("two"))
    assert pool.extend(token("short"), HOUR_MS, by="")[0] == "EXTENDED"


def test_backfill_counts_as_use_and_not_as_progress(pool: Pool) -> None:
    """Memory that is lent for a time does not extend the reservation when it comes back."""
    timed(pool)
    live(pool, 30, "two", **TWO)
    granted(pool.acquire(token("short"), "other", **SHORT))
    pool.release(token("short"))
    live(pool, 36, "two", **TWO)
    assert kept(pool) == {}
