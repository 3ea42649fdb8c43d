"""Waiters that are capped: only their agent's cap holds them back, and they keep their place."""

from __future__ import annotations

import pytest

from tests.audit import audit
from tests.lua.caps import ANN, DAY_MS, at_cap
from tests.lua.waiters import quiet, state, wait
from tests.pools import Pool, device, granted, token


def test_waiter_at_its_agents_cap_is_capped(pool: Pool) -> None:
    """Its place is -1: no room that others make is for it."""
    at_cap(pool)
    assert wait(pool, "more", **ANN) == ["WAITING", -1]
    assert wait(pool, "more", **ANN) == ["WAITING", -1]
    pool.release(token("bobs"))
    assert state(pool, "more") == "waiting"


def test_capped_waiter_holds_up_nobody(pool: Pool) -> None:
    """Eight of one capped agent before it, and the next of another agent is served."""
    at_cap(pool)
    for n in range(8):
        wait(pool, f"ann-{n}", **ANN)
    assert wait(pool, "cy", memory_mb=500) == ["WAITING", 0]
    pool.release(token("bobs"))
    assert state(pool, "cy") == "offered"


def test_head_that_reaches_its_cap_while_it_waits_is_capped(pool: Pool) -> None:
    """The cap is looked at when the device is there, and the next in the queue is looked at."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    for name in ("a", "b"):
        granted(pool.acquire(token(name), name, memory_mb=1000, ttl_ms=0))
    wait(pool, "one", **ANN | {"memory_mb": 600})
    wait(pool, "two", **ANN | {"memory_mb": 600})
    wait(pool, "cy", memory_mb=600)
    pool.release(token("a"))
    assert state(pool, "one") == "offered"
    pool.release(token("b"))
    assert (state(pool, "two"), state(pool, "cy")) == ("waiting", "offered")
    assert wait(pool, "two", **ANN | {"memory_mb": 600}) == ["WAITING", -1]


def test_last_end_of_an_agent_brings_all_back_that_fit(pool: Pool) -> None:
    """No later end would: each would wait for its own poll, beside a device that is free."""
    pool.report((device("gpu-a", 2000),), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("anns"), "ann", memory_mb=1000, ttl_ms=0))
    for n in range(8):
        assert wait(pool, f"ann-{n}", **ANN | {"memory_mb": 150}) == ["WAITING", -1]
    pool.release(token("anns"))
    pool.reap_all()  # one script offers no more than some
    states = [state(pool, f"ann-{n}") for n in range(8)]
    assert states == ["offered"] * 6 + ["waiting"] * 2
    audit(pool.redis, pool.keys)


def test_capped_waiter_comes_back_with_its_rank(pool: Pool) -> None:
    """Its rank stands before those of later waiters when the agent's sum falls."""
    at_cap(pool)
    wait(pool, "more", **ANN)
    pool.skew(10)
    wait(pool, "cy", memory_mb=500)
    pool.release(token("anns"))
    assert state(pool, "more") == "offered"
    assert state(pool, "cy") == "offered"
    devices = [pool.hash(f"record:{token(name)}")["devices"] for name in ("more", "cy")]
    assert devices[0] == devices[1]


def test_several_capped_waiters_come_back_as_far_as_the_cap_allows(pool: Pool) -> None:
    """A sum that falls a lot frees several."""
    at_cap(pool)
    for n in range(4):
        wait(pool, f"m{n}", agent="ann", memory_mb=300)
    pool.release(token("anns"))
    assert [state(pool, f"m{n}") for n in range(4)] == ["offered"] * 3 + ["waiting"]


def test_expiry_brings_a_capped_waiter_back(pool: Pool) -> None:
    """A lease that expires counts as one that is given back."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("anns"), "ann", memory_mb=900, ttl_ms=5000))
    wait(pool, "more", **ANN)
    pool.skew(5001)
    pool.reap()
    assert state(pool, "more") == "offered"


def test_cap_that_is_raised_is_found_at_the_next_poll(pool: Pool) -> None:
    """No device tells of it: the poll of the head that is capped does."""
    at_cap(pool)
    wait(pool, "more", **ANN)
    wait(pool, "last", **ANN)
    pool.set_policy(max_memory_per_agent_mb=5000)
    assert state(pool, "more") == "waiting"
    pool.release(token("bobs"))
    assert wait(pool, "more", **ANN)[0] == "GRANTED"
    assert wait(pool, "last", **ANN)[0] == "GRANTED"


def test_limit_of_leases_parks_too(pool: Pool) -> None:
    """With as many leases as it may have, offers included, the next waits for one to end."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, ttl_ms=0))
    pool.policy(max_leases_per_agent=1)
    wait(pool, "one", agent="ann", memory_mb=100)
    wait(pool, "two", agent="ann", memory_mb=100)
    pool.release(token("bobs"))
    assert (state(pool, "one"), state(pool, "two")) == ("offered", "waiting")
    pool.release(token("one"))
    assert state(pool, "two") == "offered"


def test_capped_waiter_at_the_end_of_its_wait_says_why(pool: Pool) -> None:
    """Refused for its cap, or the CPU, and nothing is left of it."""
    at_cap(pool)
    wait(pool, "more", **ANN)
    wait(pool, "cpu", on_unavailable="cpu", **ANN)
    assert wait(pool, "more", wait_ms=0, **ANN) == ["REFUSED", "agent_cap", ""]
    reply = wait(pool, "cpu", wait_ms=0, on_unavailable="cpu", **ANN)
    assert (reply[0], reply[4]) == ("GRANTED", "agent_cap")
    quiet(pool)


def test_capped_waiter_that_is_silent_times_out(pool: Pool) -> None:
    """Capped or not, who is not heard of for 10 s is out."""
    at_cap(pool)
    wait(pool, "more", **ANN)
    pool.skew(9000)
    pool.reap()
    pool.skew(1001)
    assert wait(pool, "more", **ANN) == ["LOST", "timed_out"]
    quiet(pool)


def test_whole_device_larger_than_the_cap_waits_for_a_smaller_one(pool: Pool) -> None:
    """An agent that holds nothing is not capped: no end of a lease of its own would help it."""
    pool.report((device("gpu-a", 8000), device("gpu-b", 1000, index=1)), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=2000)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, placement="pack", ttl_ms=0))
    assert wait(pool, "ann", exclusive=1) == ["WAITING", 0]
    pool.release(token("bobs"))
    assert pool.hash(f"record:{token('ann')}")["devices"] == "gpu-b=1000"


def test_head_whose_agent_took_its_cap_elsewhere_is_capped_at_its_poll(pool: Pool) -> None:
    """The agent's own later lease is in its way; those behind move up."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    pool.report((device("gpu-z"),), host="h2", deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, host="h1", ttl_ms=0))
    here = {"host": "h1", "memory_mb": 600}
    wait(pool, "first", agent="ann", **here)
    assert wait(pool, "cy", **here) == ["WAITING", 1]
    granted(pool.acquire(token("anns"), "ann", memory_mb=900, host="h2", ttl_ms=0))
    assert wait(pool, "first", agent="ann", **here) == ["WAITING", -1]
    assert wait(pool, "cy", **here) == ["WAITING", 0]


def test_head_for_several_devices_is_capped_when_one_comes(pool: Pool) -> None:
    """The devices that it needs together count against the cap, before there are enough of them."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    pool.report((device("gpu-z"),), host="h2", deadline_ms=DAY_MS)
    for uuid in ("a", "b"):
        granted(pool.acquire(token(uuid), uuid, memory_mb=1000, host="h1", ttl_ms=0))
    pool.policy(max_memory_per_agent_mb=2000)
    two = {"devices": 2, "memory_mb": 900, "host": "h1"}
    wait(pool, "first", agent="ann", **two)
    wait(pool, "cy", **two)
    granted(pool.acquire(token("anns"), "ann", memory_mb=500, host="h2", ttl_ms=0))
    pool.release(token("a"))
    assert wait(pool, "cy", **two) == ["WAITING", 0]
    assert wait(pool, "first", agent="ann", **two) == ["WAITING", -1]


def test_capped_head_whose_cap_rose_stands_in_the_queue_again(pool: Pool) -> None:
    """Nothing is free yet: from its poll on it is one of those who are looked at."""
    at_cap(pool)
    granted(pool.acquire(token("rest"), "cy", memory_mb=100, ttl_ms=0))
    wait(pool, "more", **ANN)
    wait(pool, "next", **ANN)
    pool.set_policy(max_memory_per_agent_mb=5000)
    assert wait(pool, "next", **ANN) == ["WAITING", -1]
    assert wait(pool, "more", **ANN) == ["WAITING", 0]
    assert wait(pool, "next", **ANN) == ["WAITING", 1]
    pool.release(token("bobs"))
    assert state(pool, "more") == "offered"


def test_capped_behind_another_is_not_tried(pool: Pool) -> None:
    """Capped ones of an agent keep their order: the second's poll does not pass the first."""
    at_cap(pool)
    wait(pool, "more", **ANN)
    wait(pool, "next", **ANN)
    pool.set_policy(max_memory_per_agent_mb=5000)
    pool.release(token("bobs"))
    assert wait(pool, "next", **ANN) == ["WAITING", -1]
    assert wait(pool, "more", **ANN)[0] == "GRANTED"
    assert wait(pool, "next", **ANN)[0] == "GRANTED"


def test_capped_come_back_as_far_as_the_sum_fell(pool: Pool) -> None:
    """Room for three of five: three wait in the queue, though nothing can be offered yet."""
    at_cap(pool)
    for n in range(5):
        wait(pool, f"m{n}", agent="ann", memory_mb=300)
    pool.policy(closed_until_ms=pool.reap()[1] + 5000)
    pool.release(token("anns"))
    places = [wait(pool, f"m{n}", agent="ann", memory_mb=300)[1] for n in range(5)]
    assert places == [0, 1, 2, -1, -1]


def test_capped_stays_while_the_sum_leaves_too_little(pool: Pool) -> None:
    """A sum that falls a little brings back no waiter that needs more."""
    at_cap(pool)
    granted(pool.acquire(token("bit"), "ann", memory_mb=100, ttl_ms=0))
    wait(pool, "more", **ANN)
    pool.policy(closed_until_ms=pool.reap()[1] + 5000)
    pool.release(token("bit"))
    assert wait(pool, "more", **ANN) == ["WAITING", -1]


def test_limit_of_leases_that_is_raised_is_found_at_the_next_poll(pool: Pool) -> None:
    """Nothing tells of it but the poll, as with the cap."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, ttl_ms=0))
    pool.policy(max_leases_per_agent=1)
    for name in ("one", "two"):
        wait(pool, name, agent="ann", memory_mb=100)
    pool.release(token("bobs"))
    assert wait(pool, "one", agent="ann", memory_mb=100)[0] == "GRANTED"
    assert wait(pool, "two", agent="ann", memory_mb=100) == ["WAITING", -1]
    pool.set_policy(max_leases_per_agent=2)
    assert wait(pool, "two", agent="ann", memory_mb=100)[0] == "GRANTED"


def test_agent_at_its_limit_with_cpu_leases_holds_up_nobody(pool: Pool) -> None:
    """Leases without memory count too: its waiter gives way to the next of its queue."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, ttl_ms=0))
    pool.policy(max_leases_per_agent=1)
    small = {"memory_mb": 100}
    wait(pool, "cpu", agent="ann", on_unavailable="cpu", **small)
    wait(pool, "next", agent="ann", **small)
    wait(pool, "cy", **small)
    reply = wait(pool, "cpu", agent="ann", on_unavailable="cpu", wait_ms=0, **small)
    assert reply[0] == "GRANTED"
    pool.release(token("bobs"))
    assert state(pool, "cy") == "offered"
    assert wait(pool, "next", agent="ann", **small) == ["WAITING", -1]


def test_keeper_that_is_capped_keeps_nothing(pool: Pool) -> None:
    """A head at its cap cannot have the device: it is free for all again."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    pool.report((device("gpu-z"),), host="h2", deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=500, host="h1", ttl_ms=0))
    here = {"agent": "ann", "memory_mb": 600, "host": "h1"}
    wait(pool, "first", **here)
    for _ in range(11):
        pool.skew(3000)
        wait(pool, "first", **here)
    assert pool.hash("device:gpu-a")["reserved_for"] == token("first")
    granted(pool.acquire(token("anns"), "ann", memory_mb=400, host="h2", ttl_ms=0))
    pool.set_policy(max_memory_per_agent_mb=900)
    assert wait(pool, "first", **here) == ["WAITING", -1]
    assert pool.hash("device:gpu-a")["reserved_for"] == ""
    assert pool.free("host/h1") == {"gpu-a": 500}


def test_head_whose_agent_reached_its_limit_on_the_cpu_is_capped_at_its_poll(pool: Pool) -> None:
    """No device need come for it to be capped."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, ttl_ms=0))
    pool.policy(max_leases_per_agent=1)
    small = {"memory_mb": 100}
    wait(pool, "next", agent="ann", **small)
    wait(pool, "cy", **small)
    granted(pool.acquire(token("cpu"), "ann", on_unavailable="cpu", **small))
    assert wait(pool, "next", agent="ann", **small) == ["WAITING", -1]
    assert wait(pool, "cy", **small) == ["WAITING", 0]


def test_head_is_capped_only_if_no_device_is_within_its_cap(pool: Pool) -> None:
    """L1: of two that come back at once the larger is too much; the other is offered."""
    big, small = device("g-a", 3000), device("g-b", 1500, model="m2")
    pool.report((big, small, device("g-c", model="m3")), deadline_ms=DAY_MS)
    for model in ("m1", "m2"):
        asks = {"memory_mb": 100, "model": model, "exclusive": 1, "ttl_ms": 5000}
        granted(pool.acquire(token(model), "bob", **asks))
    granted(pool.acquire(token("anns"), "ann", memory_mb=700, model="m3", ttl_ms=0))
    pool.policy(max_memory_per_agent_mb=2500)
    assert wait(pool, "whole", agent="ann", memory_mb=1200, exclusive=1) == ["WAITING", 0]
    pool.skew(5001)
    pool.reap()
    assert pool.hash(f"record:{token('whole')}")["devices"] == "g-b=1500"


def test_whole_device_that_shrinks_into_a_cap_is_offered(pool: Pool) -> None:
    """L1: less of it is free, and just so the first that waits may have all of it."""
    pool.report((device("g-a", 3000), device("g-b", 1500, index=1)), deadline_ms=DAY_MS)
    granted(pool.acquire(token("bobs"), "bob", memory_mb=900, placement="pack", ttl_ms=0))
    pool.policy(max_memory_per_agent_mb=2500)
    assert wait(pool, "whole", agent="ann", memory_mb=1200, exclusive=1) == ["WAITING", 0]
    pool.report((device("g-a", 2000),), deadline_ms=DAY_MS)
    assert state(pool, "whole") == "offered"


@pytest.mark.parametrize("how", ["agent", "team", "model"])
def test_cap_that_holds_it_back_after_a_change_brings_it_back(pool: Pool, how: str) -> None:
    """From its poll on it comes back when that party's sum falls, and before a later one."""
    pool.report((device("gpu-a", 8000, model="L4"),), deadline_ms=DAY_MS)
    by_model, by_team = ({"a": f"nominal_mb{x}=7000 borrow_mb{x}=0"} for x in ("@L4", ""))
    before, after = {"model": (by_model, by_team), "team": (by_team, by_model)}.get(
        how, (by_team, by_team)
    )
    pool.set_teams(**before)
    if how == "agent":
        pool.set_policy(max_memory_per_agent_mb=4000)
    ask = {"agent": "ann", "team": "a", "memory_mb": 4000, "wait_ms": 600_000, "model": "L4"}
    granted(pool.acquire(token("anns"), "ann", team="a", memory_mb=3000, ttl_ms=0))
    granted(pool.acquire(token("bobs"), "bob", team="a", memory_mb=3000, ttl_ms=0))
    assert pool.acquire(token("first"), **ask)[5] == -1
    if how == "agent":
        pool.set_policy(max_memory_per_agent_mb=8000)
    else:
        pool.set_teams(**after)
    pool.live_on(3000)
    assert pool.acquire(token("first"), **ask)[5] == -1
    assert pool.acquire(token("later"), **ask | {"agent": "cy"})[5] == -1
    audit(pool.redis, pool.keys)
    pool.release(token("bobs"))
    states = [pool.hash(f"record:{token(name)}")["state"] for name in ("first", "later")]
    assert states == ["offered", "waiting"]


def test_cap_of_a_team_that_holds_nothing_any_more_keeps_no_place_from_it(pool: Pool) -> None:
    """Others lend it less than it asks: no end of its own would tell, and theirs does."""
    pool.report((device("gpu-a", 5000), device("gpu-b", 5000, index=1)), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=6000 lend_mb=0", b="nominal_mb=0", c="nominal_mb=0")
    granted(pool.acquire(token("x"), "x", team="b", memory_mb=1000, ttl_ms=0))
    granted(pool.acquire(token("d"), "d", memory_mb=3000, ttl_ms=0))
    ask = {"agent": "b1", "team": "b", "memory_mb": 1500, "wait_ms": 600_000}
    assert pool.acquire(token("b1"), **ask)[5] == -1
    pool.release(token("x"))
    pool.live_on(3000)
    assert pool.acquire(token("b1"), **ask)[5] == 0
    pool.release(token("d"))
    assert pool.hash(f"record:{token('b1')}")["state"] == "offered"
