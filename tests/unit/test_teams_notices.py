"""Notices of other requests to a lease's holder: that it is preempted, and that it is wanted."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import AsyncLeaseClient, LeaseClient, LeaseLost, StillWaiting, Store
from agent_sdk.clock import local_now
from agent_sdk.protocol.messages import Answer
from agent_sdk.protocol.replies import each_renewal, renewed
from tests.stores import until
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk import AsyncLease
    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=1, memory_mb=8100)
"""One device of 8,100 MiB."""

GRACE_S = 3


@pytest.fixture
def teams(client: LeaseClient) -> Iterator[LeaseClient]:
    """Team lab may take back what team ward has borrowed, after a second."""
    client.set_policy(reclaim_after_s=1, min_runtime_s=0, preempt_grace_s=GRACE_S)
    client.set_teams({"lab": {"nominal_mb": 8000}, "ward": {}})
    yield client
    client.set_teams({})


def test_many_renewed_at_once_are_told_as_each_by_itself() -> None:
    """A time or a wish behind the findings is that of its own lease alone."""
    word = "idle,preempt:61000,wanted:3000:team/a:b"
    sent_at = local_now()
    single = renewed(Answer(["RENEWED", 1000, "", "1", 0, 31000, 30000, word], sent_at), "t")
    many = ["OUTCOMES", 1000, "", "1", 0, "RENEWED", 31000, word, "RENEWED", 31000, "idle"]
    [first, other] = [renewed(Answer(raw, sent_at), "t")
                      for raw in each_renewal(Answer(many, sent_at))]  # fmt: skip
    for found in (single, first):
        assert (found.notices, found.wanted) == (("idle",), ("team/a:b", 3000))
        assert found.preempt_at is not None
        assert abs(found.preempt_at - time.time() - 60) < 5
    assert (other.notices, other.preempt_at, other.wanted) == (("idle",), None, None)


def test_holder_is_told_of_its_preemption_and_loses_the_lease_by_it(teams: LeaseClient) -> None:
    """First with the time that is left to save its work; the reason stands in the error."""
    lease = teams.acquire("victim", memory_mb=8000, team="ward", ttl_s=3)
    seen: list[tuple[Any, ...]] = []
    lease.on_notice(lambda x: seen.append((x.preempt_at, time.time(), x.lost)))
    teams.keep(lease)
    with ThreadPoolExecutor() as threads:
        asks = threads.submit(teams.acquire, "owner", memory_mb=5000, team="lab", wait_s=30)
        assert until(lambda: seen)
        preempt_at, at, lost = seen[0]
        assert lost is False
        assert 0 < preempt_at - at <= GRACE_S
        assert lease.preempt_at == preempt_at
        assert until(lambda: lease.lost)
        assert time.time() > preempt_at - 0.5
        got = asks.result(timeout=30)
    assert lease.lost_reason == "preempted"
    with pytest.raises(LeaseLost, match="preempted for a request with a right") as caught:
        lease.raise_if_lost()
    assert caught.value.code == "preempted"
    assert until(lambda: teams.lookup(lease.token) == "preempted")
    assert not got.lost
    assert len(seen) == 1
    again = teams.acquire("victim", memory_mb=100, team="ward", after=lease.token)
    evictions: Any = teams.redis.hget(teams.keys.record(again.token), "evictions")
    assert evictions == "1"


def test_preemption_that_is_withdrawn_is_told(teams: LeaseClient) -> None:
    """The asker leaves: the holder goes on, and knows it."""
    lease = teams.acquire("victim", memory_mb=8000, team="ward", ttl_s=2)
    told = threading.Semaphore(0)
    lease.on_notice(lambda _: told.release())
    teams.keep(lease)
    with pytest.raises(StillWaiting) as waits:
        teams.acquire("owner", memory_mb=5000, team="lab", wait_s=3.5, keep_place=True)
    assert told.acquire(timeout=5)
    assert lease.preempt_at is not None
    teams.release(str(waits.value.token))
    assert told.acquire(timeout=5)
    assert (lease.preempt_at, lease.lost_reason) == (None, None)
    assert lease.wait_lost(GRACE_S + 1) is False
    assert lease.release()


def test_lease_without_expiry_is_told_and_ends_too(teams: LeaseClient) -> None:
    """It is renewed by its token alone: the error of the renewal says why it is over."""
    lease = teams.acquire("victim", memory_mb=8000, team="ward", ttl_s=0)
    with ThreadPoolExecutor() as threads:
        asks = threads.submit(teams.acquire, "owner", memory_mb=5000, team="lab", wait_s=30)
        assert until(lambda: teams.renew(lease) and lease.preempt_at is not None)
        assert lease.lost is False

        def over() -> bool:
            try:
                teams.renew(lease)
            except LeaseLost as error:
                return error.code == "preempted"
            return False

        assert until(over)
        asks.result(timeout=30)
    assert lease.lost_reason == "preempted"


def test_lease_that_nothing_renews_is_lost_by_expiry_before_its_notice(
    teams: LeaseClient,
) -> None:
    """A notice for later than its end is not the reason of its end."""
    teams.set_policy(preempt_grace_s=60)
    lease = teams.acquire("victim", memory_mb=8000, team="ward", ttl_s=6)
    with pytest.raises(StillWaiting) as waits:
        teams.acquire("owner", memory_mb=5000, team="lab", wait_s=3.5, keep_place=True)
    lease.renew(1)
    assert lease.preempt_at is not None
    assert lease.wait_lost(8)
    assert lease.lost_reason == "expired"
    teams.release(str(waits.value.token))


def test_holder_is_told_that_another_wants_its_lease(client: LeaseClient, pool: TestBroker) -> None:
    """With the agent and the size, of both clients; on_notice comes once for each change."""
    lease = client.acquire("soft", memory_mb=4000, yields=True)
    tokens = []
    for agent, memory_mb in (("next", 5000), ("third", 6000)):
        with pytest.raises(StillWaiting) as waits:
            client.acquire(agent, memory_mb=memory_mb, wait_s=0.01, keep_place=True)
        tokens.append(str(waits.value.token))
    seen: list[Any] = []
    lease.on_notice(lambda x: seen.append(x.wanted))
    for token, wanted in zip(tokens, (("next", 5000), ("third", 6000)), strict=True):
        assert client.request_yield(lease.token, token)
        client.renew(lease)
        client.renew(lease)
        assert lease.wanted == wanted
    assert until(lambda: len(seen) == 2)

    async def other() -> tuple[Any, ...]:
        async with AsyncLeaseClient(Store(pool.url)) as mine:
            adopted: AsyncLease = await mine.adopt(lease.token)
            known, told = adopted.wanted, asyncio.Event()
            adopted.on_notice(lambda _: told.set())
            await asyncio.wait_for(told.wait(), 5)
            return known, adopted.preempt_at

    assert asyncio.run(other()) == (("third", 6000), None)
    for each in (*tokens, lease.token):
        client.release(each)


def test_process_that_takes_over_a_lease_is_told_what_its_holder_was(
    teams: LeaseClient, pool: TestBroker
) -> None:
    """At once: the notice may be over before the next renewal of a lease of two minutes."""
    lease = teams.acquire("victim", memory_mb=8000, team="ward", ttl_s=120)
    with pytest.raises(StillWaiting) as waits:
        teams.acquire("owner", memory_mb=5000, team="lab", wait_s=1.5, keep_place=True)
    assert until(lambda: teams.queue()[0].preempts or poll(teams, str(waits.value.token)))
    with LeaseClient(Store(pool.url), hostname=pool.host) as other:
        adopted = other.adopt(lease.token)
        assert adopted.preempt_at is not None
        assert 0 < adopted.preempt_at - time.time() <= GRACE_S
        told = threading.Event()
        adopted.on_notice(lambda _: told.set())
        assert told.wait(1)
        assert other.release(adopted)
    teams.release(str(waits.value.token))


def test_renewal_that_comes_after_the_notice_was_over_says_so(teams: LeaseClient) -> None:
    """The holder was asleep: its late renewal ends the lease here, by the reason that it has."""
    lease = teams.acquire("victim", memory_mb=8000, team="ward", ttl_s=3)
    with pytest.raises(StillWaiting) as waits:
        teams.acquire("owner", memory_mb=5000, team="lab", wait_s=1.5, keep_place=True)
    assert until(lambda: teams.queue()[0].preempts or poll(teams, str(waits.value.token)))
    renewal = teams.renew(lease)
    assert lease.preempt_at is not None
    assert until(lambda: lease.trusted_s == 0)
    lease.accept(renewal)
    assert lease.lost_reason == "preempted"
    teams.release(str(waits.value.token))


def poll(client: LeaseClient, token: str) -> bool:
    """Ask as a waiter that polls, once; False: it waits."""
    with suppress(StillWaiting):
        client.acquire("owner", memory_mb=5000, team="lab", token=token, wait_s=0.01,
                       keep_place=True)  # fmt: skip
        return True
    return False
