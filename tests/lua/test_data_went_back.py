"""Data that go back behind what holders remember: it is noticed, and nothing is granted twice.

The server and its run_id stay what they are: only a witness can tell.
"""

from __future__ import annotations

import pytest

from tests.pools import Granted, Pool, granted, said, token
from tests.rollback import Earlier

A, B = token("a"), token("b")
REQUEST = "900|1|1|30000|0|0|*|*|spread|refuse"
CLOSED_MS, PROMISED_MS = 10_000, 15_000
REFUSED = ["REFUSED", "closed", ""]


def forgotten(pool: Pool, after_ms: int = 1000) -> Granted:
    """An exclusive lease that the pool has granted to A, and then not any more."""
    earlier = Earlier.take(pool)
    pool.skew(100)
    grant = granted(pool.acquire(A, exclusive=1))
    pool.skew(after_ms)
    earlier.put_back()
    return grant


def recover(pool: Pool, grant: Granted, name: str = A, **other: str) -> list[object]:
    """Renew as a holder whose lease was unknown a moment ago."""
    claim = {
        "fence": str(grant.fence), "ttl_ms": "30000", "owner": "",
        "epoch": pool.hash("pool")["epoch"], "agent": "agent",
        "devices": ",".join(f"{uuid}={mb}" for uuid, mb in grant.devices), "request": REQUEST,
        "client": "client", "pid": "1:1",
    } | other  # fmt: skip
    return said(pool.run("renew", 1, name, *claim.values()))


def closed(pool: Pool) -> bool:
    """Tell whether a newcomer is told that holders come first."""
    reply = said(pool.acquire(B, memory_mb=1))
    assert reply == REFUSED or reply[0] == "GRANTED", reply
    return reply == REFUSED


def test_library_that_has_seen_the_pool_later_closes_it(gpu: Pool) -> None:
    """A function outlives its call, so the first call to older data is refused; a script cannot."""
    forgotten(gpu)
    assert closed(gpu) == gpu.functions


def test_holder_whose_fence_the_pool_cannot_know_closes_it(gpu: Pool) -> None:
    """Its claim is taken up, and no other request is granted what it holds."""
    held = forgotten(gpu)
    assert recover(gpu, held)[0] == "RENEWED"
    assert closed(gpu)
    assert gpu.hash(f"device:{held.devices[0][0]}")["exclusive"] == A
    gpu.live_on(CLOSED_MS + 1)
    assert said(gpu.acquire(B, memory_mb=1)) == ["REFUSED", "no_capacity", ""]


def test_plain_renewal_of_an_unknown_fence_closes_the_pool(gpu: Pool) -> None:
    """Before its claim, and for a holder that has none."""
    held = forgotten(gpu)
    assert said(gpu.renew(A, str(held.fence))) == ["UNKNOWN"]
    assert closed(gpu)
    assert recover(gpu, held)[0] == "RENEWED"


def test_fence_of_who_answers_to_a_door_proves_nothing(gpu: Pool) -> None:
    """An agent's word over HTTP, in its own name, closes no pool."""
    later = granted(gpu.acquire(A)).fence + 1000
    said(gpu.run("renew", 1, A, later, "", "somebody"))
    gpu.release(A)
    assert not closed(gpu)


@pytest.mark.parametrize("fence", ["0", "1", "9007199254740991"])
def test_fence_that_is_known_or_cannot_be_proves_nothing(gpu: Pool, fence: str) -> None:
    """An older one is past, one of the day after tomorrow is none."""
    gpu.acquire(A)
    gpu.release(A)
    gpu.renew(A, fence)
    assert not closed(gpu)


@pytest.mark.parametrize("outcome", ["released", "revoked", "expired"])
def test_later_fence_of_a_lease_whose_end_is_known_proves_nothing(gpu: Pool, outcome: str) -> None:
    """S4: its end is remembered, so nothing of it was lost; and S3: fences stay what they are."""
    later = granted(gpu.acquire(A)).fence + 1
    ends = {
        "released": lambda: gpu.release(A),
        "revoked": lambda: gpu.revoke(A, force=1),
        "expired": lambda: gpu.live_on(30_001),
    }
    ends[outcome]()
    fence = gpu.hash("pool")["fence"]
    assert said(gpu.renew(A, str(later))) == ["LOST", outcome]
    assert gpu.hash("pool")["fence"] == fence
    assert not closed(gpu)


def test_fences_go_on_from_the_highest_that_a_witness_had(gpu: Pool) -> None:
    """S3: also where the server's clock is behind it; and the pool is not closed a second time."""
    held = forgotten(gpu)
    ahead = held.fence + 3_600_000_000
    gpu.renew(A, str(ahead))
    until_ms = gpu.hash("pool")["closed_until_ms"]
    gpu.skew(1000)
    gpu.renew(A, str(ahead))
    assert gpu.hash("pool")["closed_until_ms"] == until_ms
    gpu.live_on(CLOSED_MS)
    assert granted(gpu.acquire(B, memory_mb=1)).fence == ahead + 1


@pytest.mark.parametrize("verb", ["reap", "report"])
def test_caller_that_has_seen_the_pool_later_closes_it(gpu: Pool, verb: str) -> None:
    """A broker's ticker and a reporter remember the time of their last reply."""
    earlier, seen_ms = Earlier.take(gpu), 0
    gpu.skew(1000)
    seen_ms = gpu.reap()[1]
    granted(gpu.acquire(A, exclusive=1))
    gpu.skew(1000)
    earlier.put_back()
    if verb == "reap":
        gpu.run("reap", 1, seen_ms)
    else:
        gpu.report(epoch=f"{gpu.hash('pool')['epoch']}:{seen_ms}")
    assert closed(gpu)


def test_caller_that_has_seen_what_the_pool_knows_closes_nothing(gpu: Pool) -> None:
    """However often, and also at the very time of the last call."""
    for _ in range(3):
        seen_ms = gpu.reap()[1]
        gpu.run("reap", 1, seen_ms)
        gpu.report(epoch=f"{gpu.hash('pool')['epoch']}:{seen_ms}")
        gpu.skew(700)
    assert not closed(gpu)


@pytest.mark.parametrize("wrong", ["x", "1:x", "1:2:3", ":", "-1"])
def test_report_of_a_time_of_no_form_is_refused(gpu: Pool, wrong: str) -> None:
    """S9: it changes nothing; a colon alone says nothing either."""
    gpu.reap()
    before = gpu.stored()
    reply = said(gpu.report(epoch=wrong))
    assert reply == ["REPORTED"] if wrong == ":" else ["REFUSED", "bad_request", "epoch"]
    assert wrong == ":" or gpu.stored() == before


@pytest.mark.parametrize(("silent_ms", "closes"), [(PROMISED_MS, False), (PROMISED_MS + 1, True)])
def test_silence_longer_than_its_host_promised_closes_the_pool(
    gpu: Pool, silent_ms: int, closes: bool
) -> None:
    """A snapshot of the whole machine: nothing on it knows, but for how late it is."""
    gpu.skew(silent_ms)
    assert closed(gpu) == closes


def test_silence_of_a_pool_without_a_promise_closes_nothing(gpu: Pool) -> None:
    """A host that said that it would be silent for a day, and one of an older version."""
    gpu.report(deadline_ms=86_400_000)
    gpu.skew(3_600_000)
    assert not closed(gpu)
    gpu.release(B)
    gpu.redis.hdel(gpu.keys.pool, "silence_ms")
    gpu.by_hand()
    gpu.skew(3_600_000)
    assert said(gpu.acquire(token("c"), memory_mb=1))[0] == "GRANTED"


@pytest.mark.parametrize(("away_ms", "closes"), [(5000, False), (5001, True)])
def test_pool_left_by_a_clean_stop_is_believed_for_some_seconds(
    gpu: Pool, away_ms: int, closes: bool
) -> None:
    """Longer ago it may be a backup of that stop."""
    gpu.redis.hdel(gpu.keys.pool, "run_id")
    gpu.by_hand()
    gpu.skew(away_ms)
    assert closed(gpu) == closes


def test_lease_whose_renewals_were_forgotten_is_not_reaped(gpu: Pool) -> None:
    """The older record says an earlier end: it waits until its holder had time to renew."""
    held = granted(gpu.acquire(A, ttl_ms=5000))
    earlier = Earlier.take(gpu)
    for _ in range(3):
        gpu.skew(2000)
        gpu.renew(A, str(held.fence))
    seen_ms = gpu.reap()[1]
    earlier.put_back()
    gpu.run("reap", 1, seen_ms)
    assert gpu.renew(A, str(held.fence))[0] == "RENEWED"
    gpu.live_on(CLOSED_MS)
    assert said(gpu.renew(A, str(held.fence))) == ["LOST", "expired"]


def test_holder_is_told_at_once_when_a_younger_one_has_its_device(gpu: Pool) -> None:
    """Both believe in it, as after a failover that went unseen: the older one stops now."""
    held = forgotten(gpu)
    if not gpu.functions:
        younger = granted(gpu.acquire(B, exclusive=1))
        gpu.redis.hset(gpu.keys.pool, "run_id", "1")
        gpu.by_hand()
        gpu.skew(1000)
        assert younger.fence > held.fence
        assert recover(gpu, held) == ["LOST", "superseded"]
    else:
        assert closed(gpu)


def test_longest_hold_of_a_recovered_lease_counts_on_the_pools_clock(gpu: Pool) -> None:
    """The server's clock has stepped back by an hour since the pool began; fences are of that."""
    gpu.skew(-3_600_000)
    gpu.reap()
    gpu.live_on(3_700_000)
    held = forgotten(gpu)
    hold = REQUEST.replace("30000|0", "30000|1800000")
    assert recover(gpu, held, request=hold)[0] == "RENEWED"
    left_ms = int(gpu.hash(f"record:{A}")["hold_until_ms"]) - gpu.reap()[1]
    assert 1_790_000 < left_ms <= 1_800_000


def test_lease_whose_fence_runs_ahead_of_the_clock_is_recovered(gpu: Pool) -> None:
    """After a step back fences go on from the last one, which is of a later time."""
    granted(gpu.acquire(B))
    gpu.release(B)
    gpu.skew(-3_600_000)
    gpu.reap()
    held = forgotten(gpu)
    gpu.redis.hset(gpu.keys.pool, "run_id", "1")
    gpu.by_hand()
    gpu.skew(200)
    gpu.reap()
    assert recover(gpu, held)[0] == "RENEWED"
