"""A waiter whose agent is at its cap is capped, and comes back where it stood."""

from __future__ import annotations

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
