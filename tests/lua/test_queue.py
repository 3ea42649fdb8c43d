"""The queue as a whole: closed pools, worklists that one script cannot finish, broken records."""

from __future__ import annotations

import pytest

from tests.audit import audit
from tests.lua.costs import commands
from tests.lua.reserved import LARGE, kept, live, shared
from tests.lua.waiters import HOLDER, full, quiet, state, wait
from tests.pools import Pool, device, granted, said, token

DAY_MS, MINUTE = 86_400_000, 60_000


def start_over(pool: Pool) -> None:
    """Leave nothing of a pool that a hand has spoilt, so that its last audit finds it sound."""
    pool.redis.delete(*pool.stored())
    pool.by_hand()
    pool.report()


def close(pool: Pool, ms: int = 5000) -> None:
    """Nothing is granted for so long, as after data loss."""
    pool.policy(closed_until_ms=pool.reap()[1] + ms)


def test_queue_of_a_closed_pool_is_offered_nothing(pool: Pool) -> None:
    """Devices that come back while the pool is closed stay on the worklist until it opens."""
    full(pool)
    wait(pool, "ann")
    close(pool)
    pool.release(HOLDER)
    assert state(pool, "ann") == "waiting"
    pool.skew(5001)
    pool.reap()
    assert state(pool, "ann") == "offered"


def test_poll_in_a_closed_pool_is_granted_nothing(pool: Pool) -> None:
    """Closed is closed for a head too whose room no device told of."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(HOLDER, memory_mb=400, ttl_ms=0))
    pool.set_policy(allow_fractional_shares=0)
    wait(pool, "ann", memory_mb=500)
    close(pool)
    pool.policy(allow_fractional_shares=1)
    assert wait(pool, "ann", memory_mb=500) == ["WAITING", 0]
    pool.skew(5000)
    assert wait(pool, "ann", memory_mb=500)[0] == "GRANTED"


def test_worklist_longer_than_a_script_reads_goes_with_the_last_waiter(pool: Pool) -> None:
    """A call reads 17 of 40 entries whose waiters have ended; the last of those has a waiter."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    close(pool, MINUTE)
    for n in range(16):
        wait(pool, f"gone-{n}", host=f"h{n}")
    wait(pool, "last")
    for n in range(16, 40):
        wait(pool, f"gone-{n}", host=f"h{n}")
    pool.skew(9000)
    wait(pool, "last")
    pool.skew(2000)
    while pool.reap()[4]:
        pass
    assert pool.hash("pool")["waiting"] == "1"
    while pool.hash("pool")["closed_until_ms"] > str(pool.reap()[1]):
        wait(pool, "last")
        pool.skew(5000)
    assert state(pool, "last") == "offered"
    quiet(pool)


def test_queues_of_a_pool_that_opens_are_served_by_rank(pool: Pool) -> None:
    """The older of two heads on the worklist is placed first."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    close(pool)
    wait(pool, "old", memory_mb=900)
    wait(pool, "young", memory_mb=500)
    pool.skew(5001)
    pool.reap()
    assert (state(pool, "old"), state(pool, "young")) == ("offered", "waiting")


def test_wait_that_ends_in_a_closed_pool_gets_no_cpu(pool: Pool) -> None:
    """Closed is never a silent CPU lease, for who waited as little as for who asks now."""
    full(pool)
    wait(pool, "ann", on_unavailable="cpu")
    close(pool)
    reply = wait(pool, "ann", on_unavailable="cpu", wait_ms=0)
    assert reply == ["REFUSED", "closed", ""]
    quiet(pool)


def test_wait_that_ends_in_a_closed_pool_says_so(pool: Pool) -> None:
    """The reason is the pool's, as at the first call: who asks again later may be served."""
    full(pool)
    wait(pool, "ann")
    close(pool)
    assert wait(pool, "ann", wait_ms=0) == ["REFUSED", "closed", ""]


def test_release_in_safe_mode_does_not_call_for_more(pool: Pool) -> None:
    """A waiter for the end of SAFE_MODE is no work for a reap, which would never end."""
    full(pool)
    wait(pool, "ann")
    pool.set_policy(safe_mode=1)
    assert pool.release(HOLDER)[4] == 0
    assert pool.reap_all() == 1
    assert pool.redis.exists(f"{pool.keys.base}:worklist")


def test_worklist_is_empty_when_all_was_looked_at(pool: Pool) -> None:
    """S11: a device that fits no waiter is off `worklist`, although there are waiters."""
    full(pool)
    for n in range(20):
        wait(pool, f"w{n}", memory_mb=33)
    wait(pool, "large", **LARGE)
    pool.release(HOLDER)
    assert pool.redis.exists(f"{pool.keys.base}:worklist")
    pool.reap_all()
    assert state(pool, "large") == "waiting"
    assert not pool.redis.exists(f"{pool.keys.base}:worklist")
    audit(pool.redis, pool.keys)


def test_poll_while_work_is_left_passes_nobody(pool: Pool) -> None:
    """A head that could have what is free waits until the older ones were checked."""
    full(pool)
    for n in range(20):
        wait(pool, f"w{n}", memory_mb=33)
    wait(pool, "late", memory_mb=600)
    pool.release(HOLDER)
    assert wait(pool, "late", memory_mb=600) == ["WAITING", 0]
    pool.reap_all()
    assert {state(pool, f"w{n}") for n in range(20)} == {"offered"}
    assert state(pool, "late") == "waiting"


@pytest.mark.parametrize(
    ("memory_mb", "size_class"), [(1, "m0"), (2, "m1"), (256, "m8"), (257, "m9"), (512, "m9")]
)
def test_share_of_a_device_of_its_very_size_is_offered(
    pool: Pool, memory_mb: int, size_class: str
) -> None:
    """A size class ends with its power of two; what is exactly as large as the device fits it."""
    pool.report((device("gpu-a", memory_mb),), deadline_ms=DAY_MS)
    granted(pool.acquire(HOLDER, memory_mb=memory_mb, ttl_ms=0))
    wait(pool, "ann", memory_mb=memory_mb)
    assert pool.hash(f"record:{token('ann')}")["queue_id"] == f"*/*/{size_class}"
    pool.release(HOLDER)
    assert state(pool, "ann") == "offered"


def test_waiters_of_one_millisecond_stand_in_the_order_of_their_coming(pool: Pool) -> None:
    """Ranks are µs: it is the time that decides, not the token."""
    full(pool)
    for place, name in enumerate(("z", "y", "x")):
        ask = {"agent": name, "wait_ms": 9000}
        assert said(pool.acquire(token(name), **ask)) == ["WAITING", place]
        pool.redis.incr(f"{pool.keys.base}:test_frozen_us")


def test_poll_that_waits_longer_says_until_when(pool: Pool) -> None:
    """A reader of the queue sees how long each will go on waiting."""
    full(pool)
    wait(pool, "ann", wait_ms=5000)
    before = int(pool.hash(f"record:{token('ann')}")["wait_until_ms"])
    wait(pool, "ann", wait_ms=60_000)
    assert int(pool.hash(f"record:{token('ann')}")["wait_until_ms"]) == before + 55_000


def test_refused_waiter_may_ask_again(pool: Pool) -> None:
    """The end of a wait leaves no tombstone: the same token joins anew, last in its queue."""
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    assert wait(pool, "ann", wait_ms=0) == ["REFUSED", "no_capacity", ""]
    assert pool.ended(token("ann")) is None
    assert wait(pool, "ann") == ["WAITING", 1]


def test_last_poll_of_one_behind_passes_nobody(pool: Pool) -> None:
    """The end of its wait is no reason to be served before those ahead."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(HOLDER, memory_mb=400, ttl_ms=0))
    wait(pool, "large", **LARGE)
    wait(pool, "small", memory_mb=600)
    assert wait(pool, "small", memory_mb=600, wait_ms=0) == ["REFUSED", "no_capacity", ""]


def test_offers_of_whole_hosts_are_bounded_by_devices(pool: Pool) -> None:
    """S8: four devices are what one script hands out, for one waiter or for four."""
    found = tuple(device(f"gpu-{n}", index=n) for n in range(8))
    pool.report(found, deadline_ms=DAY_MS)
    pool.drain("h1", "host")
    for name in ("one", "two"):
        wait(pool, name, devices=4)
    assert pool.drain("h1", "host", drained=0)[4] == 1
    assert (state(pool, "one"), state(pool, "two")) == ("offered", "waiting")
    pool.reap()
    assert state(pool, "two") == "offered"


def test_worklist_that_one_script_finishes_is_left_empty(pool: Pool) -> None:
    """A queue that the first half of a script put on `worklist` is taken off by its second half."""
    found = tuple(device(f"gpu-{n}", index=n) for n in range(6))
    pool.report(found, deadline_ms=DAY_MS)
    for n in range(6):
        granted(pool.acquire(token(f"h{n}"), memory_mb=1000, ttl_ms=5000))
    for n in range(7):
        wait(pool, f"w{n}")
    pool.skew(5001)
    pool.reap()
    states = [state(pool, f"w{n}") for n in range(7)]
    assert states == ["offered"] * 6 + ["waiting"]
    assert not pool.redis.exists(f"{pool.keys.base}:worklist")


COSTS = {
    "acquire": lambda p: p.acquire(token("mine")), "renew": lambda p: p.renew(token("mine")),
    "release": lambda p: p.release(token("mine")), "reap": lambda p: p.reap(),
}  # fmt: skip


def test_verbs_with_nobody_waiting_touch_nothing_of_the_queue(pool: Pool) -> None:
    """S8: as many commands as before there was a queue, and one of the test's clock."""
    pool.checked = False
    pool.report((device("gpu-a"), device("gpu-b")), deadline_ms=DAY_MS)
    found = {name: commands(pool.redis, lambda c=c: c(pool))[1] for name, c in COSTS.items()}
    by_functions = {"acquire": 20, "renew": 7, "release": 18, "reap": 6}
    by_scripts = {"acquire": 21, "renew": 8, "release": 21, "reap": 6}
    assert found == (by_functions if pool.functions else by_scripts)


def test_token_is_known_for_as_long_as_its_tombstone(pool: Pool) -> None:
    """LOST is said for 15 min, then nothing is known of it; within them none joins."""
    full(pool)
    wait(pool, "ann")
    pool.release(token("ann"))
    left_ms = pool.redis.pttl(pool.keys.done(token("ann")))
    assert 890_000 < left_ms <= 900_000
    assert wait(pool, "ann") == ["LOST", "cancelled"]
    pool.redis.delete(pool.keys.done(token("ann")))
    pool.by_hand()
    assert wait(pool, "ann") == ["WAITING", 0]


@pytest.mark.parametrize("place", range(3))
def test_place_of_a_waiter_is_how_many_are_ahead(pool: Pool, place: int) -> None:
    """A waiter behind the head is told so, and need not come at the same moment as the head."""
    full(pool)
    for n in range(3):
        wait(pool, f"w{n}")
    assert wait(pool, f"w{place}") == ["WAITING", place]


def test_capped_waiter_whose_record_is_gone_breaks_no_verb(pool: Pool) -> None:
    """S9: a hand that deletes a record of one that is capped must not break its agent's release."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(HOLDER, "ann", memory_mb=900, ttl_ms=0))
    assert wait(pool, "gone", agent="ann", memory_mb=500) == ["WAITING", -1]
    assert wait(pool, "next", agent="ann", memory_mb=500) == ["WAITING", -1]
    pool.redis.delete(pool.keys.record(token("gone")))
    pool.by_hand()
    try:
        assert said(pool.release(HOLDER)) == ["RELEASED"]
        assert state(pool, "next") == "offered"
    finally:
        start_over(pool)


def test_keeper_whose_record_is_gone_keeps_nothing(pool: Pool) -> None:
    """A hand that deletes a keeper's record must not lose its device to everybody for ever."""
    shared(pool)
    wait(pool, "gone", **LARGE)
    live(pool, 33, "gone", **LARGE)
    wait(pool, "next", memory_mb=300)
    pool.redis.delete(pool.keys.record(token("gone")))
    pool.by_hand()
    try:
        live(pool, 60, "next", memory_mb=300)
        pool.release(token("on-gpu-a"))
        pool.reap_all()
        assert kept(pool) == {}
        assert pool.free() != {}
    finally:
        start_over(pool)
