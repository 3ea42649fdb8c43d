"""acquire with a wait: entering the queue, waiting in it, and every way out of it."""

from __future__ import annotations

import pytest

from tests.lua.waiters import MINUTE, full, quiet, wait
from tests.pools import Pool, device, granted, said, token


def test_acquire_that_waits_is_enqueued(pool: Pool) -> None:
    """WAITING with its place; the record says what was asked and since when."""
    full(pool)
    assert wait(pool, "ann") == ["WAITING", 0]
    assert wait(pool, "bob", memory_mb=800) == ["WAITING", 1]
    record = pool.hash(f"record:{token('ann')}")
    assert (record["state"], record["agent"], record["queue_id"]) == ("waiting", "ann", "*/*/m10")
    assert (record["memory_mb"], record["devices"], record["client"]) == ("900", "", "client")
    assert int(record["wait_until_ms"]) - int(record["enqueued_ms"]) == MINUTE
    assert "fence" not in record


def test_acquire_without_a_wait_enqueues_nothing(pool: Pool) -> None:
    """No wait, no record: refused now, as before."""
    full(pool)
    assert said(pool.acquire(token("ann"))) == ["REFUSED", "no_capacity", ""]
    assert pool.hash(f"record:{token('ann')}") == {}
    quiet(pool)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        ({"memory_mb": 1001}, "never_fits"),
        ({"devices": 2}, "never_fits"),
        ({"host": "h9"}, "host_unknown"),
        ({"model": "m9"}, "model_unknown"),
    ],
)
def test_acquire_that_can_never_fit_does_not_wait(
    pool: Pool, ask: dict[str, object], code: str
) -> None:
    """The impossible is refused at once, and reserves no device."""
    full(pool)
    assert wait(pool, "ann", **ask) == ["REFUSED", code, ""]
    quiet(pool)


def test_acquire_that_became_impossible_is_refused_at_its_poll(pool: Pool) -> None:
    """The device that could have held it shrank while it waited."""
    full(pool)
    wait(pool, "ann")
    pool.report((device("gpu-a", 500),))
    assert wait(pool, "ann") == ["REFUSED", "never_fits", ""]
    quiet(pool)


def test_acquire_above_the_agents_cap_does_not_wait(pool: Pool) -> None:
    """A request that the cap can never allow is refused: no end of a lease would help."""
    full(pool)
    pool.policy(max_memory_per_agent_mb=800)
    assert wait(pool, "ann") == ["REFUSED", "agent_cap", ""]
    quiet(pool)


def test_acquire_beyond_the_limit_of_waiters_is_refused(pool: Pool) -> None:
    """A runaway agent fills the queue only so far; others still join."""
    full(pool)
    pool.policy(max_waiters_per_agent=2)
    for name in ("one", "two"):
        assert wait(pool, name, agent="ann")[0] == "WAITING"
    assert wait(pool, "three", agent="ann") == ["REFUSED", "limit", ""]
    assert wait(pool, "one", agent="ann") == ["WAITING", 0]
    assert wait(pool, "four", agent="bob")[0] == "WAITING"


def test_acquire_at_the_limit_of_leases_does_not_wait(pool: Pool) -> None:
    """Too many leases is for the agent to mend."""
    full(pool)
    pool.policy(max_leases_per_agent=1)
    assert wait(pool, "x", agent="holder") == ["REFUSED", "limit", ""]


@pytest.mark.parametrize(
    ("how", "answer"), [("refuse", ["REFUSED", "no_capacity", ""]), ("cpu", "GRANTED")]
)
def test_acquire_at_the_end_of_its_wait_decides(pool: Pool, how: str, answer: object) -> None:
    """The last poll, without a wait, refuses or takes the CPU, in one script."""
    full(pool)
    wait(pool, "ann", on_unavailable=how)
    reply = wait(pool, "ann", on_unavailable=how, wait_ms=0)
    if answer == "GRANTED":
        assert (reply[0], reply[4], len(reply)) == ("GRANTED", "no_capacity", 5)
        assert pool.hash(f"record:{token('ann')}")["state"] == "active"
    else:
        assert reply == answer
        assert pool.hash(f"record:{token('ann')}") == {}
    quiet(pool)


def test_acquire_at_the_end_of_its_wait_takes_what_is_there(pool: Pool) -> None:
    """An offer that came just before the last poll is claimed, not refused."""
    full(pool)
    wait(pool, "ann")
    pool.release(token("holder-gpu-a"))
    assert wait(pool, "ann", wait_ms=0)[0] == "GRANTED"
    quiet(pool)


def test_acquire_of_a_waiter_with_another_request_conflicts(pool: Pool) -> None:
    """The raw arguments but for the wait: that one shrinks with every poll."""
    full(pool)
    wait(pool, "ann", memory_mb=0, agent="ann")
    pool.policy(default_memory_mb=10)
    assert wait(pool, "ann", memory_mb=0, wait_ms=1) == ["WAITING", 0]
    assert wait(pool, "ann", memory_mb=901) == ["CONFLICT"]
    assert wait(pool, "ann", memory_mb=0, agent="bob") == ["CONFLICT"]


def test_acquire_of_a_waiter_reserves_what_the_default_was(pool: Pool) -> None:
    """A default that changed meanwhile does not change what is waited for."""
    full(pool)
    pool.policy(default_memory_mb=900)
    wait(pool, "ann", memory_mb=0)
    pool.policy(default_memory_mb=10)
    pool.release(token("holder-gpu-a"))
    assert granted(pool.acquire(token("ann"), "ann", memory_mb=0)).devices == (("gpu-a", 900),)


def test_waiter_that_is_not_heard_of_times_out(pool: Pool) -> None:
    """10 s without a poll: out of the queue; its late poll is told, and joins nothing."""
    full(pool)
    wait(pool, "ann")
    pool.skew(9999)
    assert wait(pool, "ann") == ["WAITING", 0]
    pool.skew(10_000)
    assert wait(pool, "ann") == ["WAITING", 0]
    pool.skew(5000)
    pool.reap()
    pool.skew(5001)
    assert wait(pool, "ann") == ["LOST", "timed_out"]
    assert wait(pool, "ann") == ["LOST", "timed_out"]
    assert pool.stats()["timed_out"] == 1
    quiet(pool)


def test_waiter_behind_others_keeps_its_place_by_polling(pool: Pool) -> None:
    """A heartbeat is a poll too, and the first that times out makes room for the next."""
    full(pool)
    for name in ("ann", "bob", "cy"):
        wait(pool, name)
    pool.skew(6000)
    assert wait(pool, "bob") == ["WAITING", 1]
    assert wait(pool, "cy") == ["WAITING", 2]
    pool.skew(6000)
    assert wait(pool, "cy") == ["WAITING", 1]
    assert wait(pool, "bob") == ["WAITING", 0]
    assert wait(pool, "ann") == ["LOST", "timed_out"]


def test_release_of_a_waiter_cancels_its_wait(pool: Pool) -> None:
    """Leaving is a release: told once, and nothing brings it back."""
    full(pool)
    wait(pool, "ann")
    assert said(pool.release(token("ann"))) == ["RELEASED"]
    assert said(pool.release(token("ann"))) == ["ALREADY", "cancelled"]
    assert wait(pool, "ann") == ["LOST", "cancelled"]
    assert pool.events()[-1] == "cancelled"
    quiet(pool)


def test_release_before_its_acquire_keeps_it_out_of_the_queue(pool: Pool) -> None:
    """A release that overtakes its acquire wins here too."""
    full(pool)
    assert said(pool.release(token("ann"))) == ["UNKNOWN"]
    assert wait(pool, "ann") == ["LOST", "released"]
    quiet(pool)


def test_revoke_of_a_waiter_ends_its_wait(pool: Pool) -> None:
    """An operator's word reaches those who wait at once, force or not."""
    full(pool)
    wait(pool, "ann")
    assert said(pool.revoke(token("ann")))[0] == "REVOKED"
    assert wait(pool, "ann") == ["LOST", "revoked"]
    quiet(pool)


def test_renew_of_a_waiter_claims_nothing(pool: Pool) -> None:
    """A waiter has no lease to renew; only acquire claims."""
    full(pool)
    wait(pool, "ann")
    assert said(pool.renew(token("ann"))) == ["UNKNOWN"]
    pool.release(token("holder-gpu-a"))
    assert said(pool.renew(token("ann"))) == ["UNKNOWN"]
    assert wait(pool, "ann")[0] == "GRANTED"


def test_waiters_are_refused_when_safe_mode_begins(pool: Pool) -> None:
    """SAFE_MODE speaks at the next poll, and leaves the queue empty."""
    full(pool)
    for name in ("ann", "bob"):
        wait(pool, name)
    pool.set_policy(safe_mode=1)
    for name in ("bob", "ann"):
        assert wait(pool, name) == ["REFUSED", "safe_mode", ""]
    quiet(pool)


def test_waiters_of_a_closed_pool_wait_and_are_served_when_it_opens(pool: Pool) -> None:
    """Closed: no request is granted; joining is allowed, and the head's poll finds it open."""
    reply = pool.report((device("gpu-a"),))
    pool.policy(closed_until_ms=reply[1] + 5000)
    assert said(pool.acquire(token("no"))) == ["REFUSED", "closed", ""]
    assert wait(pool, "ann") == ["WAITING", 0]
    pool.skew(4998)
    assert wait(pool, "ann") == ["WAITING", 0]
    pool.skew(1)
    assert wait(pool, "ann")[0] == "GRANTED"


def test_priority_of_one_is_worth_a_minute(pool: Pool) -> None:
    """Rank is the time of joining less a minute for each step, written once."""
    full(pool)
    pool.renew(token("holder-gpu-a"), ttl_ms=0)
    wait(pool, "old")
    for _ in range(6):
        pool.skew(9000)
        wait(pool, "old")
    assert wait(pool, "urgent", priority=1) == ["WAITING", 0]
    assert wait(pool, "old") == ["WAITING", 1]
    pool.skew(6001)
    wait(pool, "urgent", priority=1)
    wait(pool, "old")
    assert wait(pool, "late", priority=1) == ["WAITING", 2]


def test_waiter_whose_record_is_removed_by_hand_holds_up_nobody(pool: Pool) -> None:
    """A hand that deletes a record blocks neither the queue nor any verb."""
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    pool.redis.delete(pool.keys.record(token("ann")))
    pool.by_hand()
    pool.release(token("holder-gpu-a"))
    assert wait(pool, "bob")[0] == "GRANTED"
    pool.redis.hdel(pool.keys.agents, "ann#waiters", "team default#waiters")
    pool.by_hand()
    pool.redis.zrem(pool.keys.deadlines, token("ann"))
    pool.by_hand()
