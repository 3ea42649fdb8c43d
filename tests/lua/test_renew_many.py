"""renew_many: each lease of one call is renewed, or told why not, as by a call of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.lua.costs import commands
from tests.lua.reserved import DAY_MS
from tests.lua.waiters import state, wait
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Callable

A, B, C = token("a"), token("b"), token("c")


def hold(pool: Pool, name: str, **ask: Any) -> tuple[str, int, str]:
    """A lease, as `renew_many` is told of it."""
    return name, granted(pool.acquire(name, **{"memory_mb": 100} | ask)).fence, ""


def outcomes(reply: list[Any]) -> list[tuple[Any, ...]]:
    """Return the tag, the end or the reason, and the notices of each lease."""
    assert reply[0] == "OUTCOMES", reply
    return list(zip(reply[5::3], reply[6::3], reply[7::3], strict=True))


def test_each_lease_is_renewed_in_record_deadline_and_key(gpu: Pool) -> None:
    """A renewal gives a full ttl from now: that of the grant, or that of the call."""
    leases = [hold(gpu, A), hold(gpu, B, ttl_ms=20_000), hold(gpu, C)]
    gpu.live_on(10_000)
    leases[2] = (*leases[2][:2], "60000")
    reply = gpu.renew_many(*leases)
    ends = [reply[1] + left_ms for left_ms in (30_000, 20_000, 60_000)]
    assert outcomes(reply) == [("RENEWED", end, "") for end in ends]
    for (name, fence, _), end in zip(leases, ends, strict=True):
        assert gpu.hash(f"record:{name}")["expires_at_ms"] == str(end)
        assert gpu.redis.zscore(gpu.keys.deadlines, name) == end
        key, left_ms = gpu.keys.lease("gpu-a", name), end - reply[1]
        assert gpu.redis.get(key) == str(fence)
        assert left_ms - 1000 < gpu.redis.pttl(key) <= left_ms


def test_several_devices_of_a_lease_and_a_cpu_lease_are_renewed(pool: Pool) -> None:
    """Each device's key lives on, and a lease without a device has none."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)))
    both = hold(pool, A, devices=2)
    cpu = hold(pool, B, host="nowhere", on_unavailable="cpu")
    pool.live_on(20_000)
    assert [tag for tag, *_ in outcomes(pool.renew_many(both, cpu))] == ["RENEWED"] * 2
    for uuid in ("gpu-a", "gpu-b"):
        assert 29_000 < pool.redis.pttl(pool.keys.lease(uuid, A)) <= 30_000


def test_key_that_is_gone_is_set_anew(gpu: Pool) -> None:
    """The public proof of life comes back with its fence."""
    lease = hold(gpu, A)
    gpu.redis.delete(gpu.keys.lease("gpu-a", A))
    gpu.renew_many(lease, hold(gpu, B))
    assert gpu.redis.get(gpu.keys.lease("gpu-a", A)) == str(lease[1])


def test_renewal_never_shortens_and_never_passes_max_hold(gpu: Pool) -> None:
    """S7: a holder was told an end; and however long is asked, max_hold_ms is the last."""
    first = granted(gpu.acquire(A, memory_mb=100))
    held = granted(gpu.acquire(B, memory_mb=100, max_hold_ms=50_000))
    reply = gpu.renew_many((A, first.fence, 1000), (B, held.fence, 604_800_000))
    ends = [first.expires_at_ms, held.now_ms + 50_000]
    assert outcomes(reply) == [("RENEWED", end, "") for end in ends]


def test_lease_without_end_has_a_key_without_one_to_see(gpu: Pool) -> None:
    """A ttl of 0 is ten years."""
    assert outcomes(gpu.renew_many((*hold(gpu, A)[:2], 0)))[0][1] > 315_000_000_000


LOSSES: dict[str, Callable[[Pool], object]] = {
    "released": lambda p: p.release(B),
    "revoked": lambda p: p.revoke(B, force=1),
    "expired": lambda p: p.skew(1001),
    "timed_out": lambda p: (p.live_on(9000), p.skew(1001)),
    "superseded": lambda _: None,
}


@pytest.mark.parametrize("outcome", LOSSES)
def test_lease_that_is_over_is_lost_and_its_neighbours_go_on(gpu: Pool, outcome: str) -> None:
    """S4: each has an answer of its own, and what is over stays so."""
    left, right = hold(gpu, A), hold(gpu, C)
    if outcome == "timed_out":
        gpu.acquire(B, memory_mb=1000, wait_ms=60_000)
        middle: tuple[Any, ...] = (B, "", "")
    else:
        name, fence, _ = hold(gpu, B, ttl_ms=1000 if outcome == "expired" else 30_000)
        middle = (name, fence - (outcome == "superseded"), "")
    LOSSES[outcome](gpu)
    for _ in range(2):
        found = outcomes(gpu.renew_many(left, middle, right))
        assert found[1] == ("LOST", outcome, "")
        assert [found[0][0], found[2][0]] == ["RENEWED", "RENEWED"]


def test_lease_whose_deadline_came_before_its_record_says_is_not_resurrected(gpu: Pool) -> None:
    """S4: a hand moved it; what this call has ended is not renewed by what it read before."""
    left, right = hold(gpu, A), hold(gpu, B)
    gpu.checked = False
    gpu.redis.zadd(gpu.keys.deadlines, {A: 1})
    gpu.policy(next_deadline_ms=1)
    assert outcomes(gpu.renew_many(left, right))[0] == ("LOST", "expired", "")


def test_token_that_is_unknown_or_waits_is_unknown(gpu: Pool) -> None:
    """Only acquire claims; nothing is written about what was not held."""
    lease = hold(gpu, A)
    gpu.acquire(B, memory_mb=1000, wait_ms=60_000)
    found = outcomes(gpu.renew_many((C, 5, ""), lease, (B, "", "")))
    assert [tag for tag, *_ in found] == ["UNKNOWN", "RENEWED", "UNKNOWN"]


def test_revoked_lease_ends_when_its_holder_learns_of_it(gpu: Pool) -> None:
    """The next in the queue is offered the room by the same call."""
    lease, other = hold(gpu, A, memory_mb=900), hold(gpu, B)
    gpu.acquire(C, memory_mb=900, wait_ms=60_000)
    gpu.revoke(A)
    assert outcomes(gpu.renew_many(other, lease))[1] == ("LOST", "revoked", "")
    assert gpu.hash(f"record:{C}")["state"] == "offered"


def test_notice_reaches_the_holder(gpu: Pool) -> None:
    """A finding of its host comes with the renewal of its lease, and with no other's."""
    lease, other = hold(gpu, A), hold(gpu, B)
    gpu.report((device("gpu-a", tell=f"{A}=idle+overuse"),))
    assert [notice for _, _, notice in outcomes(gpu.renew_many(other, lease))] == [
        "",
        "idle,overuse",
    ]


def test_notice_that_the_call_itself_withdraws_is_none(gpu: Pool) -> None:
    """It first offers what one before left over, and a waiter may so need no lease to end."""
    gpu.set_policy(reclaim_after_s=1)
    gpu.report((device("gpu-a"),), deadline_ms=DAY_MS)
    lease = hold(gpu, A, memory_mb=900, ttl_ms=0, preemptible=1)
    gpu.report(tuple(device(f"gpu-{n}", index=n) for n in range(8)), host="h2", deadline_ms=DAY_MS)
    gpu.drain("h2", "host")
    small = {f"small-{n}": 2**n for n in range(5, 9)}  # as many offers as a call makes
    for _ in range(2):
        for name, mb in small.items():
            wait(gpu, name, memory_mb=mb, exclusive=1, host="h2", priority=9)
        wait(gpu, "large", memory_mb=800, priority=5)
        gpu.skew(2000)
    assert "preempt_at_ms" in gpu.hash(f"record:{A}")
    gpu.drain("h2", "host", drained=0)
    assert state(gpu, "large") == "waiting"
    ((tag, ends_ms, notice),) = outcomes(gpu.renew_many(lease))
    assert state(gpu, "large") == "offered"
    now_ms, record = int(gpu.hash("pool")["last_ms"]), gpu.hash(f"record:{A}")
    assert (tag, ends_ms - now_ms, notice) == ("RENEWED", 315_360_000_000, "")
    assert int(record["expires_at_ms"]) == ends_ms
    assert gpu.redis.zscore(gpu.keys.deadlines, A) == ends_ms


def test_owner_of_another_sees_nothing(gpu: Pool) -> None:
    """With an owner, whatever is not theirs is unknown; without, anybody's is renewed."""
    mine, other = hold(gpu, A, owner="ann"), hold(gpu, B, owner="bob")
    nobodys = hold(gpu, C)
    tags = [tag for tag, *_ in outcomes(gpu.renew_many(mine, other, nobodys, owner="ann"))]
    assert tags == ["RENEWED", "UNKNOWN", "UNKNOWN"]
    assert {tag for tag, *_ in outcomes(gpu.renew_many(mine, other, nobodys))} == {"RENEWED"}


def test_fence_that_the_pool_cannot_know_closes_it(gpu: Pool) -> None:
    """It proves lost data: nothing is granted before the holders have renewed."""
    lease = hold(gpu, A)
    assert outcomes(gpu.renew_many(lease, (B, lease[1] + 1000, "")))[1][0] == "UNKNOWN"
    assert said(gpu.acquire(C, memory_mb=1)) == ["REFUSED", "closed", ""]
    assert int(gpu.hash("pool")["fence"]) == lease[1] + 1000


def test_what_is_over_comes_after_proof_of_lost_data(gpu: Pool) -> None:
    """The proof opens a window in which leases that just ended may still be renewed."""
    late, lease = hold(gpu, A, ttl_ms=1000), hold(gpu, B)
    gpu.skew(1001)
    found = outcomes(gpu.renew_many(lease, late, (C, lease[1] + 1000, "")))
    assert [tag for tag, *_ in found] == ["RENEWED", "RENEWED", "UNKNOWN"]


def test_one_call_ends_a_bounded_number_and_says_nothing_of_the_rest(pool: Pool) -> None:
    """S8: what has no answer is asked for again, and until then nothing of it changed."""
    pool.report((device("gpu-a", 100_000),))
    leases = [hold(pool, token(n)) for n in range(40)]
    for name, *_ in leases:
        pool.revoke(name)
    left = leases
    sizes = []
    while left:
        found = outcomes(pool.renew_many(*left))
        assert set(found) == {("LOST", "revoked", "")}
        sizes.append(len(found))
        left = left[len(found) :]
    assert sizes == [16, 16, 8]


def test_each_further_lease_costs_three_calls(pool: Pool) -> None:
    """S8: its record is read, its key and its record are written; the deadlines once for all."""
    pool.report((device("gpu-a", 100_000),))
    leases = [hold(pool, token(n)) for n in range(20)]
    pool.checked = False

    def cost(count: int) -> int:
        return commands(pool.redis, lambda: pool.renew_many(*leases[:count]))[1]

    assert cost(20) - cost(10) == 30
    assert cost(1) == commands(pool.redis, lambda: pool.renew(leases[0][0]))[1]


def test_call_holds_256_leases_and_none_twice(gpu: Pool) -> None:
    """More, none, a part of one, or one twice is refused as a whole, and changes nothing (S9)."""
    lease = hold(gpu, A)
    gpu.skew(1)
    before = gpu.hash(f"record:{A}")
    many = [(token(n), "", "") for n in range(256)]
    for bad in ((lease, *many), (), (lease, lease)):
        assert said(gpu.renew_many(*bad)) == ["REFUSED", "bad_request", "leases"]
    assert said(gpu.run("renew_many", 1, "", *lease[:2]))[1:] == ["bad_request", "leases"]
    for bad, name in (
        ((B[:15], "", ""), "token"),
        ((B, "x", ""), "fence"),
        ((B, "", 999), "ttl_ms"),
    ):
        assert said(gpu.renew_many(lease, bad))[1:] == ["bad_request", name]
    assert gpu.hash(f"record:{A}") == before
    assert outcomes(gpu.renew_many(*many))[255] == ("UNKNOWN", "", "")
