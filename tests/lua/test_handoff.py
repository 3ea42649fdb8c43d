"""Whoever makes room hands it on in the same script: offers, claims, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.lua.waiters import HOLDER, full, inbox, quiet, state, wait
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Callable


def lose_and_renew(pool: Pool) -> None:
    """A soft revoke is told at the renewal, which gives back."""
    pool.revoke(HOLDER)
    assert said(pool.renew(HOLDER)) == ["LOST", "revoked"]


ROOM: dict[str, Callable[[Pool], object]] = {
    "release": lambda p: p.release(HOLDER),
    "forced revoke": lambda p: p.revoke(HOLDER, force=1),
    "renew of a revoked": lose_and_renew,
    "a new device": lambda p: p.report((device("gpu-b", index=1),)),
    "a larger device": lambda p: p.report((device("gpu-a", 2000),)),
}


@pytest.mark.parametrize("how", ROOM)
def test_room_is_offered_in_the_script_that_makes_it(pool: Pool, how: str) -> None:
    """L1: after that call the head has its offer and its process a hint; no other waiter has."""
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    ROOM[how](pool)
    assert (state(pool, "ann"), state(pool, "bob")) == ("offered", "waiting")
    assert inbox(pool) == [token("ann")]
    assert wait(pool, "ann")[0] == "GRANTED"
    assert wait(pool, "bob") == ["WAITING", 0]


def test_expiry_is_handed_on_by_whoever_notices(pool: Pool) -> None:
    """L2: the reap that takes back what is over offers it too."""
    full(pool)
    wait(pool, "ann", client="elsewhere")
    for _ in range(3):
        pool.skew(9999)
        wait(pool, "ann")
    pool.skew(5)
    assert said(pool.reap()) == ["REAPED"]
    assert state(pool, "ann") == "offered"
    assert inbox(pool, "elsewhere") == [token("ann")]


def test_expiry_on_a_real_device_is_handed_on_after_its_grace(pool: Pool) -> None:
    """Cooling memory is withheld from the queue too; the end of the grace hands it on."""
    pool.report((device("gpu-a", simulated=0),))
    granted(pool.acquire(HOLDER, ttl_ms=1000))
    wait(pool, "ann")
    pool.skew(1001)
    pool.reap()
    assert state(pool, "ann") == "waiting"
    pool.skew(5001)
    pool.reap()
    assert state(pool, "ann") == "offered"


def test_memory_that_others_give_back_is_handed_on_by_the_report(pool: Pool) -> None:
    """A process without a lease ends: the sample that proves it serves the queue."""
    reply = pool.report((device("gpu-a", used_mb=500),), sampled_ms=1)
    wait(pool, "ann")
    assert state(pool, "ann") == "waiting"
    pool.skew(10)
    pool.report((device("gpu-a", used_mb=0),), sampled_ms=reply[1] + 1)
    assert state(pool, "ann") == "offered"


@pytest.mark.parametrize("what", ["device", "host"])
def test_undrain_serves_the_queue(pool: Pool, what: str) -> None:
    """A device or host that takes leases again gives them to those who wait first."""
    pool.report((device("gpu-a"),))
    name = "gpu-a" if what == "device" else "h1"
    pool.drain(name, what)
    assert wait(pool, "ann")[0] == "WAITING"
    pool.drain(name, what, drained=0)
    assert state(pool, "ann") == "offered"


def test_host_that_returns_serves_the_queue(pool: Pool) -> None:
    """A host that was away has idle devices again."""
    pool.report((device("gpu-a"),), deadline_ms=1000)
    pool.skew(1001)
    pool.reap()
    wait(pool, "ann")
    pool.report((device("gpu-a"),))
    assert state(pool, "ann") == "offered"


def test_safe_mode_keeps_the_work_and_hands_it_on_when_it_ends(pool: Pool) -> None:
    """While it is on nothing is offered; the set_policy that ends it serves."""
    full(pool)
    wait(pool, "ann")
    pool.set_policy(safe_mode=1)
    pool.release(HOLDER)
    assert state(pool, "ann") == "waiting"
    pool.set_policy(safe_mode=0)
    assert state(pool, "ann") == "offered"


def test_offer_has_no_fence_and_no_lease_key(pool: Pool) -> None:
    """Both come at the claim: before it nobody holds anything that an outsider could see."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    record = pool.hash(f"record:{token('ann')}")
    assert (record["state"], record["devices"]) == ("offered", "gpu-a=900")
    assert "fence" not in record
    assert not pool.redis.exists(pool.keys.lease("gpu-a", token("ann")))
    assert pool.number("gpu-a", "leased_mb") == 900
    got = granted(pool.acquire(token("ann"), "ann", wait_ms=1))
    assert pool.redis.get(pool.keys.lease("gpu-a", token("ann"))) == str(got.fence)


def test_claim_gives_a_full_ttl_and_is_repeated_safely(pool: Pool) -> None:
    """The lease begins at the claim; a duplicate of the claim is the same lease."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    pool.skew(9000)
    got = granted(pool.acquire(token("ann"), "ann", wait_ms=1))
    assert got.remaining_ms == 30_000
    pool.skew(1000)
    again = granted(pool.acquire(token("ann"), "ann", wait_ms=0))
    assert (again.fence, again.remaining_ms) == (got.fence, 29_000)


def test_offer_that_is_not_claimed_goes_to_the_next(pool: Pool) -> None:
    """L4: a dead waiter delays those behind it by one claim of 10 s, and times out."""
    full(pool)
    wait(pool, "dead")
    wait(pool, "next")
    pool.release(HOLDER)
    pool.skew(9000)
    assert wait(pool, "next") == ["WAITING", 0]
    pool.skew(1000)
    assert wait(pool, "next") == ["WAITING", 0]
    pool.skew(1)
    assert wait(pool, "next")[0] == "GRANTED"
    assert wait(pool, "dead") == ["LOST", "timed_out"]


def test_offer_that_is_given_back_goes_to_the_next(pool: Pool) -> None:
    """Leaving with an offer in hand hands it on in that script."""
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    pool.release(HOLDER)
    assert said(pool.release(token("ann"))) == ["RELEASED"]
    assert state(pool, "bob") == "offered"
    assert wait(pool, "ann") == ["LOST", "cancelled"]


def test_offer_that_is_revoked_goes_to_the_next(pool: Pool) -> None:
    """An operator's revoke of an offered one does the same."""
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    pool.release(HOLDER)
    pool.revoke(token("ann"))
    assert state(pool, "bob") == "offered"
    assert wait(pool, "ann") == ["LOST", "revoked"]


def test_offer_is_decided_anew_after_a_change_of_policy(pool: Pool) -> None:
    """A claim is judged by the policy of now, and not by that of the offer."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 3000, index=1)))
    granted(pool.acquire(token("a"), memory_mb=1000, placement="pack"))
    granted(pool.acquire(token("b"), memory_mb=2500))
    wait(pool, "ann")
    pool.release(token("a"))
    assert pool.hash(f"record:{token('ann')}")["devices"] == "gpu-a=900"
    pool.set_policy(allow_fractional_shares=0)
    got = granted(pool.acquire(token("ann"), "ann", wait_ms=1))
    assert got.devices == (("gpu-a", 1000),)
    assert "withdrawn" in pool.events()


def test_offer_is_withdrawn_when_safe_mode_begins(pool: Pool) -> None:
    """SAFE_MODE between offer and claim: nothing is granted, the device is free again."""
    full(pool)
    wait(pool, "ann")
    pool.release(HOLDER)
    pool.set_policy(safe_mode=1)
    assert wait(pool, "ann") == ["REFUSED", "safe_mode", ""]
    assert pool.free() == {"gpu-a": 1000}
    quiet(pool)


def test_withdrawn_offer_keeps_its_place(pool: Pool) -> None:
    """The cap fell below it: it waits where it stood, before those who came later."""
    full(pool)
    wait(pool, "ann")
    wait(pool, "bob")
    pool.release(HOLDER)
    pool.set_policy(expiry_grace_s=1)
    assert wait(pool, "ann")[0] == "GRANTED"
    assert wait(pool, "bob") == ["WAITING", 0]


def test_newcomer_does_not_pass_who_waits_for_the_same(pool: Pool) -> None:
    """Room that the call's own reap makes goes to the queue before it goes to the call."""
    full(pool)
    wait(pool, "ann")
    for _ in range(3):
        pool.skew(9000)
        wait(pool, "ann")
    pool.skew(3001)
    assert said(pool.acquire(token("new"), "new")) == ["REFUSED", "no_capacity", ""]
    assert state(pool, "ann") == "offered"


def test_smaller_newcomer_of_the_same_queue_waits_its_turn(pool: Pool) -> None:
    """No waiter passes another of its queue, even if it fits: sizes differ by less than 2."""
    pool.report((device("gpu-a"),))
    granted(pool.acquire(token("a"), memory_mb=400))
    assert wait(pool, "large", memory_mb=1000)[0] == "WAITING"
    assert said(pool.acquire(token("b"), memory_mb=600)) == ["REFUSED", "no_capacity", ""]
    assert said(pool.acquire(token("c"), memory_mb=500))[0] == "GRANTED"


def test_leaving_first_lets_the_next_be_looked_at(pool: Pool) -> None:
    """A queue with another head may fit what was tried before."""
    pool.report((device("gpu-a"),))
    granted(pool.acquire(token("a"), memory_mb=400))
    wait(pool, "large", memory_mb=1000)
    wait(pool, "small", memory_mb=600)
    pool.release(token("large"))
    assert state(pool, "small") == "offered"


def test_device_goes_to_the_oldest_head_that_it_fits(pool: Pool) -> None:
    """Firsts of the four selectors, by rank; one that it does not fit is passed."""
    pool.report((device("gpu-a", model="m1"),), host="h1")
    granted(pool.acquire(HOLDER, memory_mb=1000))
    wait(pool, "other", memory_mb=10, host="h1", model="m1", priority=0)
    pool.report((device("gpu-z", 4000, model="m2"),), host="h2")
    granted(pool.acquire(token("z"), memory_mb=4000))
    pool.skew(1)
    wait(pool, "too-large", memory_mb=3000)
    pool.skew(1)
    wait(pool, "model", model="m1", memory_mb=900)
    pool.skew(1)
    wait(pool, "host", host="h1", memory_mb=500)
    pool.release(HOLDER)
    assert [state(pool, n) for n in ("other", "too-large", "model", "host")] == [
        "offered", "waiting", "offered", "waiting",
    ]  # fmt: skip


def test_one_device_serves_several_and_says_more(pool: Pool) -> None:
    """Work that one script may not finish is `more`, and any next call goes on."""
    pool.report((device("gpu-a"),))
    granted(pool.acquire(HOLDER, memory_mb=1000))
    for n in range(10):
        wait(pool, f"w{n}", memory_mb=100)
    reply = pool.release(HOLDER)
    offered = sum(state(pool, f"w{n}") == "offered" for n in range(10))
    assert 4 <= offered < 10
    assert reply[4] == 1
    assert pool.reap_all() >= 2
    assert {state(pool, f"w{n}") for n in range(10)} == {"offered"}
    audit(pool.redis, pool.keys)


def test_acquire_while_work_is_left_asks_for_a_reap(pool: Pool) -> None:
    """A refusal is not final while something is left to hand out."""
    pool.report((device("gpu-a"),))
    granted(pool.acquire(HOLDER, memory_mb=1000))
    for n in range(20):
        wait(pool, f"w{n}", memory_mb=33)
    pool.release(HOLDER)
    assert said(pool.acquire(token("new"), memory_mb=600)) == ["AGAIN"]
    pool.reap_all()
    assert said(pool.acquire(token("new"), memory_mb=600)) == ["REFUSED", "no_capacity", ""]


def test_whole_devices_are_handed_on_together(pool: Pool) -> None:
    """S5: two of one host, when the second of them becomes idle."""
    full(pool, "gpu-a", "gpu-b")
    assert wait(pool, "ann", devices=2)[0] == "WAITING"
    pool.release(token("holder-gpu-b"))
    assert state(pool, "ann") == "waiting"
    pool.release(HOLDER)
    got = granted(pool.acquire(token("ann"), "ann", devices=2, wait_ms=1))
    assert {uuid for uuid, _ in got.devices} == {"gpu-a", "gpu-b"}


def test_hints_are_bounded_and_end(pool: Pool) -> None:
    """An inbox without a reader holds a thousand hints and lives a minute."""
    full(pool)
    key = f"{pool.keys.base}:inbox:client"
    pool.redis.rpush(key, *["x"] * 1000)
    wait(pool, "ann")
    pool.release(HOLDER)
    assert pool.redis.llen(key) == 1000
    assert inbox(pool)[-1] == token("ann")
    assert 0 < pool.redis.pttl(key) <= 60_000


def test_waiter_without_a_client_is_left_no_hint(pool: Pool) -> None:
    """A waiter without an inbox polls."""
    full(pool)
    wait(pool, "ann", client="")
    pool.release(HOLDER)
    assert not pool.redis.keys(f"{pool.keys.base}:inbox:*")
    assert wait(pool, "ann", client="")[0] == "GRANTED"
