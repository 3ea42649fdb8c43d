"""News of a lease between teams, as its holder sees them: it is to be preempted, or wanted."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import StillWaiting
from agent_sdk.errors import LeaseLost
from agent_sdk.protocol.messages import new_token
from agent_sdk.protocol.replies import told_apart
from tests.api.brokers import eventually
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=1, memory_mb=1000)

GRACE_S, PROMPT_S = 3, 6


@pytest.fixture(autouse=True)
def lab(pool: TestBroker) -> Iterator[None]:
    """Preemption after a second, and afterwards no lease and no waiter."""
    pool.client.set_policy(reclaim_after_s=1, preempt_grace_s=GRACE_S)
    yield
    for each in (*pool.client.queue(), *pool.client.leases()):
        pool.client.release(each.token)


def poll(pool: TestBroker, token: str) -> bool:
    """Ask as a waiter of higher priority does, once; return True if it has a lease now."""
    ask: dict[str, Any] = {"memory_mb": 900, "priority": 5, "host": "any", "token": token}
    try:
        pool.client.acquire("asker", wait_s=0.01, keep_place=True, **ask)
    except StillWaiting:
        return False
    return True


def test_words_of_a_renewal_are_told_apart() -> None:
    """Findings stay as they are; an agent's name may have a colon."""
    said = ("idle", "preempt:1795607407688", "wanted:900:team:ann", "overuse")
    findings, at_ms, wanted = told_apart(said)
    assert (findings, at_ms, wanted) == (("idle", "overuse"), 1795607407688, ("team:ann", 900))
    assert told_apart(("idle",)) == (("idle",), None, None)


def test_holder_is_told_when_its_lease_is_taken_back(pool: TestBroker) -> None:
    """Once, on this machine's clock; a withdrawal is told too; the end says its reason."""
    told: list[float | None] = []
    lease = pool.client.acquire("victim", memory_mb=900, preemptible=True, ttl_s=2)
    lease.on_notice(lambda it: told.append(it.preempt_at))
    token = new_token()
    poll(pool, token)
    time.sleep(1.1)
    poll(pool, token)
    pool.client.renew(lease)
    assert lease.preempt_at is not None
    assert 0 < lease.preempt_at - time.time() <= GRACE_S
    pool.client.renew(lease)
    pool.client.release(token)
    pool.client.renew(lease)
    assert lease.preempt_at is None
    eventually(lambda: len(told) == 2, 20)
    assert told[0] is not None
    assert told[1] is None


def test_lease_that_is_taken_back_is_lost_by_that_reason(pool: TestBroker) -> None:
    """The pool says so, or its time is over by this machine's clock."""
    lease = pool.client.acquire("victim", memory_mb=900, preemptible=True, ttl_s=2)
    lost = threading.Event()
    lease.on_lost(lambda _: lost.set())
    pool.client.keep(lease)
    token = new_token()
    eventually(lambda: poll(pool, token), 60, every_s=0.3)
    eventually(lost.is_set, 20)
    assert lease.lost_reason == "preempted"
    with pytest.raises(LeaseLost, match="preempted"):
        lease.raise_if_lost()


def test_notice_that_is_shorter_than_the_time_between_renewals_is_told(pool: TestBroker) -> None:
    """A lease of two minutes is renewed each 15 s: its keeper sees that there is a notice."""
    pool.client.set_policy(preempt_grace_s=PROMPT_S)
    told = threading.Event()
    lease = pool.client.acquire("victim", memory_mb=900, preemptible=True, ttl_s=120)
    lease.on_notice(lambda _: told.set())
    pool.client.keep(lease)
    token = new_token()
    eventually(lambda: poll(pool, token) or pool.client.lookup(lease.token).preempt_at_ms, 20)
    assert told.wait(PROMPT_S)
    assert lease.preempt_at is not None
    assert lease.preempt_at > time.time()


def test_kept_lease_ends_when_its_notice_is_over(pool: TestBroker) -> None:
    """Q4: and not at its next renewal, which for a lease of two minutes is up to 15 s later."""
    pool.client.set_policy(preempt_grace_s=PROMPT_S + 4)  # long enough to be told before
    with pool.client.lease("victim", memory_mb=900, preemptible=True, ttl_s=120) as lease:
        ask: dict[str, Any] = {"memory_mb": 900, "priority": 5, "host": "any"}
        got = pool.client.acquire("asker", wait_s=60, **ask)
        assert lease.preempt_at is not None
        assert 0 < time.time() - lease.preempt_at < 2
        eventually(lambda: lease.lost_reason == "preempted", 2)
        assert pool.client.release(got)


def test_notice_from_before_a_lease_was_kept_is_told(pool: TestBroker) -> None:
    """Its keeper asks at once, and not after the third of its length."""
    pool.client.set_policy(preempt_grace_s=60)
    told = threading.Event()
    lease = pool.client.acquire("victim", memory_mb=900, preemptible=True, ttl_s=120)
    lease.on_notice(lambda _: told.set())
    token = new_token()
    eventually(lambda: poll(pool, token) or pool.client.lookup(lease.token).preempt_at_ms, 20)
    pool.client.keep(lease)
    assert told.wait(1)
    pool.client.release(lease)
    pool.client.release(token)


def test_holder_that_yields_is_told_which_agent_wants_how_much(pool: TestBroker) -> None:
    """At its next renewal."""
    pool.client.set_policy(reclaim_after_s=0)
    lease = pool.client.acquire("kind", memory_mb=900, yields=True)
    token = new_token()
    poll(pool, token)
    assert pool.client.request_yield(lease.token, token)
    pool.client.renew(lease)
    assert lease.wanted == ("asker", 900)
