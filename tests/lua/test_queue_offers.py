"""Offers: whom a device may go to, and what a claim finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lua.waiters import HOLDER, full, inbox, state, wait
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Callable

DAY_MS = 86_400_000

SELECTORS = {
    "any": {}, "host": {"host": "h1"}, "model": {"model": "m1"},
    "host and model": {"host": "h1", "model": "m1"},
}  # fmt: skip


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("size", [{"memory_mb": 1}, {"memory_mb": 900}, {"exclusive": 1}])
def test_room_is_offered_to_a_queue_of_any_kind(
    pool: Pool, selector: str, size: dict[str, int]
) -> None:
    """A device that comes back is checked for its four selectors, the smallest size class too."""
    full(pool)
    assert wait(pool, "ann", **SELECTORS[selector], **size)[0] == "WAITING"
    pool.release(HOLDER)
    assert state(pool, "ann") == "offered"


@pytest.mark.parametrize("ask", [{"host": "h2"}, {"model": "m2"}, {"host": "h2", "model": "m2"}])
def test_room_is_not_offered_to_a_queue_of_another_device(pool: Pool, ask: dict[str, str]) -> None:
    """The offered device is one of those asked for."""
    pool.report((device("gpu-z", model="m2"),), host="h2", deadline_ms=DAY_MS)
    granted(pool.acquire(token("z"), memory_mb=1000, ttl_ms=0))
    full(pool)
    wait(pool, "ann", **ask)
    pool.release(HOLDER)
    assert state(pool, "ann") == "waiting"


def test_room_too_small_for_the_first_goes_to_the_head_of_another_queue(pool: Pool) -> None:
    """L1: a head whose size class suits but that does not fit stops no other queue."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("stays"), memory_mb=100, ttl_ms=0))
    granted(pool.acquire(HOLDER, memory_mb=900, ttl_ms=0))
    wait(pool, "large", memory_mb=1000)
    wait(pool, "small", memory_mb=500)
    pool.release(HOLDER)
    assert (state(pool, "large"), state(pool, "small")) == ("waiting", "offered")


def test_whole_device_above_what_the_cap_leaves_is_not_offered(pool: Pool) -> None:
    """A whole device counts in full: one larger than the cap is for somebody else."""
    pool.report((device("gpu-a", 8000), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    for name in ("a", "b"):
        granted(pool.acquire(token(name), name, exclusive=1, ttl_ms=0))
    pool.policy(max_memory_per_agent_mb=2000)
    assert wait(pool, "ann", exclusive=1) == ["WAITING", 0]
    pool.release(token("a" if pool.hash("device:gpu-a")["exclusive"] == token("a") else "b"))
    assert pool.free() == {"gpu-a": 8000}
    assert state(pool, "ann") == "waiting"
    assert not pool.redis.exists(f"{pool.keys.base}:capped:ann")
    assert wait(pool, "ann", exclusive=1) == ["WAITING", 0]


def test_offer_under_a_later_policy_is_claimed_as_it_is(pool: Pool) -> None:
    """An offer under the policy of now is not withdrawn, whatever its number."""
    full(pool)
    wait(pool, "ann")
    pool.set_policy(expiry_grace_s=1)
    pool.release(HOLDER)
    assert wait(pool, "ann")[0] == "GRANTED"
    assert "withdrawn" not in pool.events()


def test_withdrawn_offer_that_fits_no_more_waits_before_those_who_came_later(pool: Pool) -> None:
    """Nothing fits under the new policy; its rank is the old one, and its time is not over."""
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    granted(pool.acquire(token("stays"), memory_mb=100, ttl_ms=0))
    granted(pool.acquire(HOLDER, memory_mb=900, ttl_ms=0))
    wait(pool, "ann", memory_mb=600)
    wait(pool, "bob", memory_mb=600)
    rank = pool.hash(f"record:{token('ann')}")["rank"]
    pool.release(HOLDER)
    pool.set_policy(allow_fractional_shares=0)
    pool.skew(9000)
    assert wait(pool, "bob", memory_mb=600) == ["WAITING", 0]
    assert wait(pool, "ann", memory_mb=600) == ["WAITING", 0]
    record = pool.hash(f"record:{token('ann')}")
    assert (record["state"], record["devices"], record["rank"]) == ("waiting", "", rank)
    assert wait(pool, "bob", memory_mb=600) == ["WAITING", 1]
    assert pool.free() == {"gpu-a": 900}
    pool.skew(9999)
    assert wait(pool, "ann", memory_mb=600) == ["WAITING", 0]


def test_offer_in_a_pool_that_closed_is_withdrawn(pool: Pool) -> None:
    """Closed between offer and claim: no grant, no loss; served when it opens."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    pool.policy(closed_until_ms=pool.reap()[1] + 5000)
    assert wait(pool, "ann") == ["WAITING", 0]
    assert state(pool, "ann") == "waiting"
    pool.skew(5001)
    assert wait(pool, "ann")[0] == "GRANTED"


TAKES_NO_MORE: dict[str, Callable[[Pool], object]] = {
    "drained": lambda p: p.drain("gpu-a"),
    "host drained": lambda p: p.drain("h1", what="host"),
    "lost": lambda p: p.report((device("gpu-a", state="lost"),), deadline_ms=DAY_MS),
    "away": lambda p: (p.report(deadline_ms=1000), p.skew(1001), p.reap()),
}


@pytest.mark.parametrize("how", TAKES_NO_MORE)
def test_offer_of_a_device_that_takes_no_more_leases_is_withdrawn(pool: Pool, how: str) -> None:
    """Between offer and claim a device may be drained, be lost, or its host fall silent: it was
    granted all the same. It waits where it stood, and is granted when the device is back.
    """
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    pool.release(HOLDER)
    assert state(pool, "ann") == "offered"
    TAKES_NO_MORE[how](pool)
    assert wait(pool, "ann") == ["WAITING", 0]
    assert wait(pool, "bob") == ["WAITING", 1]
    assert pool.events().count("withdrawn") == 1
    assert pool.agents() == {"ann#waiters": "1", "bob#waiters": "1"}
    pool.drain("h1", what="host", drained=0)
    pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
    assert state(pool, "ann") == "offered"
    assert wait(pool, "ann")[0] == "GRANTED"


def test_offer_of_two_devices_is_withdrawn_with_either(pool: Pool) -> None:
    """All or none: the other goes back, too."""
    full(pool, "gpu-a", "gpu-b")
    wait(pool, "ann", devices=2)
    pool.release(token("holder-gpu-a"))
    pool.release(token("holder-gpu-b"))
    assert state(pool, "ann") == "offered"
    pool.drain("gpu-b")
    assert wait(pool, "ann", devices=2) == ["WAITING", 0]
    assert pool.free() == {"gpu-a": 1000}


def test_lease_on_a_device_that_takes_no_more_leases_is_told_as_it_is(pool: Pool) -> None:
    """A repeat is no claim: who holds a drained device holds it on."""
    full(pool)
    pool.drain("gpu-a")
    assert said(pool.acquire(HOLDER, "holder", memory_mb=1000))[0] == "GRANTED"


def test_offer_counts_in_its_agents_sum(pool: Pool) -> None:
    """An offer is promised memory: the agent's next request finds it so."""
    full(pool)
    pool.policy(max_memory_per_agent_mb=1000)
    wait(pool, "ann")
    pool.release(HOLDER)
    assert pool.agents() == {"ann": "900", "ann#leases": "1"}
    assert pool.stats()["offered"] == 1
    assert said(pool.acquire(token("more"), "ann", memory_mb=101)) == ["REFUSED", "agent_cap", ""]


def test_offer_times_out_with_its_agents_sum(pool: Pool) -> None:
    """An unclaimed offer is given back in full, and its hint is late, not harmful."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    pool.skew(9000)
    pool.reap()
    pool.skew(1001)
    pool.reap()
    assert pool.agents() == {}
    assert pool.free() == {"gpu-a": 1000}
    assert inbox(pool) == [token("ann")]
    assert wait(pool, "ann") == ["LOST", "timed_out"]


def test_hints_come_in_the_order_of_the_offers(pool: Pool) -> None:
    """The oldest hint is read first: it has the least time left."""
    full(pool)
    for n in range(3):
        wait(pool, f"w{n}", memory_mb=300)
    pool.release(HOLDER)
    assert inbox(pool) == [token(f"w{n}") for n in range(3)]


def test_renew_of_an_offer_claims_nothing(pool: Pool) -> None:
    """Only acquire claims; an offer that is renewed is an offer still, with its own end."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    pool.skew(9000)
    assert said(pool.renew(token("ann"))) == ["UNKNOWN"]
    assert state(pool, "ann") == "offered"
    pool.skew(1001)
    assert wait(pool, "ann") == ["LOST", "timed_out"]


def test_claim_with_another_request_conflicts(pool: Pool) -> None:
    """An offer is for what was asked; who asks for more is not who was offered it."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    assert wait(pool, "ann", memory_mb=901) == ["CONFLICT"]
    assert state(pool, "ann") == "offered"
    assert wait(pool, "ann", wait_ms=0)[0] == "GRANTED"


def test_offer_before_the_last_poll_beats_the_cpu(pool: Pool) -> None:
    """The GPU that came in time is claimed, although the CPU would do."""
    full(pool)
    wait(pool, "ann", on_unavailable="cpu")
    pool.release(HOLDER)
    got = granted(pool.acquire(token("ann"), "ann", on_unavailable="cpu", wait_ms=0))
    assert (got.devices, got.reason) == ((("gpu-a", 900),), "")


def test_whole_device_is_no_other_than_the_one_whose_turn_it_is(pool: Pool) -> None:
    """L1, L3: two devices come back; the exclusive one takes none that a better rank waits for."""
    both = (device("gpu-a", 2000), device("gpu-b", 3000, index=1))
    pool.report(both, deadline_ms=1000)
    pool.skew(1001)
    pool.reap()
    wait(pool, "first", memory_mb=2500, host="h1", priority=5)
    wait(pool, "second", memory_mb=2500, exclusive=1, model="m1")
    pool.report(both)
    assert (state(pool, "first"), state(pool, "second")) == ("offered", "waiting")


def test_several_whole_devices_wait_for_the_turn_of_each(pool: Pool) -> None:
    """L1: a request for two takes none of them before who is first for it, and both when it may."""
    both = (device("gpu-a", 2000), device("gpu-b", 3000, index=1))
    pool.report(both, deadline_ms=1000)
    pool.skew(1001)
    pool.reap()
    wait(pool, "first", memory_mb=2500, host="h1", priority=5)
    wait(pool, "pair", memory_mb=2000, devices=2)
    pool.report(both, deadline_ms=DAY_MS)
    assert (state(pool, "first"), state(pool, "pair")) == ("offered", "waiting")
    pool.release(token("first"))
    assert state(pool, "pair") == "offered"


def test_devices_that_come_back_at_once_go_to_who_queues_several_in_its_turn(pool: Pool) -> None:
    """L1, L3: a lease of two ends; the pair that waited longer has both, no later one takes one."""
    both = (device("gpu-a", 1000), device("gpu-b", 1000, index=1))
    pool.report(both, deadline_ms=DAY_MS)
    granted(pool.acquire(HOLDER, devices=2, memory_mb=1, ttl_ms=0))
    wait(pool, "pair", devices=2, memory_mb=1)
    wait(pool, "single", exclusive=1, memory_mb=1)
    wait(pool, "share", memory_mb=500)
    pool.release(HOLDER)
    states = [state(pool, name) for name in ("pair", "single", "share")]
    assert states == ["offered", "waiting", "waiting"]


def test_first_beyond_its_cap_takes_no_other_device_before_who_waited_longer(pool: Pool) -> None:
    """S11: of those that nobody has looked at yet the longest waiting comes first, here too."""
    pool.report((device("gpu-small", 1000),), host="h1", deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1500, closed_until_ms=pool.reap()[1] + 5000)
    wait(pool, "longer", memory_mb=900, host="h1")
    wait(pool, "capped", exclusive=1, memory_mb=1)
    pool.report((device("gpu-large", 2000),), host="h2", deadline_ms=DAY_MS)
    pool.skew(5001)
    pool.reap()
    assert (state(pool, "longer"), state(pool, "capped")) == ("offered", "waiting")


def test_head_that_keeps_devices_and_is_at_its_cap_elsewhere_holds_nobody_up(pool: Pool) -> None:
    """L1: its cap is all that is in the way of two free devices; who stands behind it has them."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), host="h1", deadline_ms=DAY_MS)
    pool.report((device("gpu-c"),), host="h3", deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=6000)
    granted(pool.acquire(HOLDER, devices=2, memory_mb=900, host="h1", ttl_ms=0))
    granted(pool.acquire(token("small"), "ann", memory_mb=500, host="h3", ttl_ms=0))
    for _ in range(5):
        wait(pool, "ann", devices=2, memory_mb=900)
        wait(pool, "bob", devices=2, memory_mb=900)
        pool.skew(8000)
    assert pool.hash(f"record:{token('ann')}")["reserved"] == "gpu-a,gpu-b"
    both = (device("gpu-x", 3000), device("gpu-y", 3000, index=1))
    pool.report(both, host="h2", deadline_ms=DAY_MS)
    assert (state(pool, "ann"), state(pool, "bob")) == ("waiting", "offered")


def test_larger_whole_device_is_waited_for_beside_an_idle_smaller_one(pool: Pool) -> None:
    """L1: a request for less memory of a whole device is of another size class, and has it now."""
    pool.report((device("large", 8000), device("small", 1000, index=1)), deadline_ms=DAY_MS)
    granted(pool.acquire(token("holder"), "holder", memory_mb=5000, ttl_ms=0))
    assert wait(pool, "large", memory_mb=4000, exclusive=1) == ["WAITING", 0]
    assert wait(pool, "small", memory_mb=500, exclusive=1)[0] == "GRANTED"
