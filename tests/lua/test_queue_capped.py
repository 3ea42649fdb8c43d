"""Capped waiters: when a head leaves its queue, when it is back."""

from __future__ import annotations

from tests.lua.caps import ANN, at_cap
from tests.lua.waiters import state, wait
from tests.pools import Pool, device, granted, token

DAY_MS = 86_400_000


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
    """A sum that falls a little brings back nobody who needs more."""
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
