"""`exchange`: one lease is given back and the next one taken in one write, whatever happens."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_sdk import (
    BadRequest,
    BrokerUnavailable,
    LeaseClient,
    NoCapacity,
    OutcomeUnknown,
)
from agent_sdk.scripts import library as functions
from tests.faults.callers import Caller, Wire, living
from tests.faults.proxy import Proxy
from tests.pools import device
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pools import Pool
    from tests.servers import Server


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture(params=["sync", "async"])
def caller(
    request: pytest.FixtureRequest, server: Server, pool: Pool, wire: Wire
) -> Iterator[Caller]:
    """One device of 1000 MiB; afterwards no lease is left, and none was granted twice."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    with Proxy(server.port, wire.passes, wire.answers) as proxy:
        caller = Caller(request.param, proxy.url, pool, 0.6)
        caller.pool()
        yield caller
        wire.lose = 0
        caller.close()
        if caller.loop:
            caller.loop.run_until_complete(asyncio.sleep(0))  # transports close at a next turn
            caller.loop.close()


def test_exchange_gets_the_room_that_it_gives_back_in_one_write(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """The release takes effect first: a whole device goes round without another one."""
    lease = caller.acquire("me", exclusive=True, memory_mb=900)
    wire.sent.clear()
    for turn in range(1, 6):
        before, lease = lease, caller.exchange(lease, "me", exclusive=True, memory_mb=900)
        assert (before.released, before.trusted_s) == (True, 0.0)
        assert (lease.fence > before.fence, lease.lost) == (True, False)
        assert living(pool) == {lease.token}
        assert (wire.exchanges(), len(wire.sent)) == (turn, turn)
    assert caller.release(lease)
    assert (pool.stats()["granted"], pool.stats()["released"]) == (6, 6)


def test_exchange_that_is_refused_has_given_the_old_lease_back(caller: Caller, pool: Pool) -> None:
    """A refusal does not bring it back; the pool is empty."""
    lease = caller.acquire("me", memory_mb=100)
    other = caller.acquire("other", memory_mb=800)
    with pytest.raises(NoCapacity):
        caller.exchange(lease, "me", memory_mb=300)
    assert (lease.released, living(pool)) == (True, {other.token})
    assert caller.release(lease) is False
    assert caller.release(other)


def test_exchange_with_a_wrong_option_leaves_the_lease_as_it_is(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """Nothing is sent."""
    lease = caller.acquire("me", memory_mb=100)
    wire.sent.clear()
    for wrong in ({"memory_mb": -1}, {"ttl_s": 0.1}, {"token": "short"}):
        with pytest.raises(BadRequest):
            caller.exchange(lease, "me", **wrong)
    assert (wire.sent, lease.released, lease.lost) == ([], False, False)
    assert living(pool) == {lease.token}
    assert caller.release(lease)


def test_exchange_of_a_lease_of_another_process_is_refused(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """A forked child's view is no lease of the child's: nothing is sent, the parent holds on."""
    lease = caller.acquire("me", memory_mb=100)
    view = pickle.loads(pickle.dumps(lease))
    view._holder = "another"
    wire.sent.clear()
    with pytest.raises(BadRequest, match="adopt"):
        caller.exchange(view, "me", memory_mb=100)
    assert (wire.sent, living(pool)) == ([], {lease.token})
    assert caller.release(lease)


def test_exchange_by_token_and_of_an_ended_lease_gets_the_next_one(
    caller: Caller, pool: Pool
) -> None:
    """The old one was given back or revoked before: no error, one lease."""
    lease = caller.acquire("me", memory_mb=100)
    second = caller.exchange(lease.token, "me", memory_mb=100)
    third = caller.exchange(lease, "me", memory_mb=100)
    caller.revoke(second.token, force=True)
    fourth = caller.exchange(second, "me", memory_mb=100)
    assert living(pool) == {third.token, fourth.token}
    assert caller.release(third)
    assert caller.release(fourth)


def test_exchange_waits_in_the_queue_after_its_release(
    caller: Caller, pool: Pool, connect: Callable[..., LeaseClient]
) -> None:
    """Its old room goes to the pool at once; it gets the next lease when there is enough."""
    lease = caller.acquire("me", memory_mb=600)
    with connect() as other:
        held = other.acquire("other", memory_mb=400)
        left: list[set[str]] = []

        def leave() -> None:
            until(other.queue)
            left.append({one.token for one in other.leases()})
            other.release(held)

        thread = threading.Thread(target=leave)
        thread.start()
        lease = caller.exchange(lease, "me", memory_mb=900, wait_s=20)
        thread.join()
    assert left == [{held.token}]
    assert living(pool) == {lease.token}
    assert caller.release(lease)


def test_exchange_whose_replies_are_lost_is_repeated_and_done_once(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """The connection breaks after both were executed: one release, one grant."""
    lease = caller.acquire("me", exclusive=True, memory_mb=900)
    for turn in range(2, 7):
        wire.lose = 1
        lease = caller.exchange(lease, "me", exclusive=True, memory_mb=900)
        assert living(pool) == {lease.token}
        assert (pool.stats()["granted"], pool.stats()["released"]) == (turn, turn - 1)
    assert caller.release(lease)


def test_exchange_without_any_answer_leaves_neither_lease(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """Its outcome is unknown; both are given back once the store answers."""
    lease = caller.acquire("me", memory_mb=100)
    wire.lose = 1_000_000
    with pytest.raises(OutcomeUnknown):
        caller.exchange(lease, "me", memory_mb=100)
    assert lease.released
    wire.lose = 0
    until(lambda: living(pool) == set(), 10)


def test_exchange_of_anothers_lease_without_any_answer_leaves_it(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """With an owner nothing is repeated by the token alone, which would end any lease."""
    lease = caller.acquire("me", memory_mb=100, owner="ann")
    wire.lose = 1_000_000
    with pytest.raises((BrokerUnavailable, OutcomeUnknown)):
        caller.exchange(lease.token, "me", memory_mb=100, owner="bob")
    wire.lose = 0
    other = caller.acquire("me", memory_mb=100)
    until(lambda: not caller.client.keeper._abandoned)
    assert living(pool) == {lease.token, other.token}
    assert caller.release(lease.token, owner="ann")
    assert caller.release(other)


def test_exchange_with_the_store_away_falls_back_and_gives_the_old_one_back(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """A CPU lease of its own in place of the next one; from that to a GPU sends no release."""
    lease = caller.acquire("me", memory_mb=100)
    wire.lose = 1_000_000
    local = caller.exchange(lease, "me", memory_mb=100, on_unavailable="cpu")
    assert (local.local, local.on_cpu) == (True, True)
    wire.lose = 0
    until(lambda: living(pool) == set(), 10)
    wire.sent.clear()
    lease = caller.exchange(local, "me", memory_mb=100)
    assert (local.released, living(pool)) == (True, {lease.token})
    assert not any(b"gpu_release" in chunk for chunk in wire.sent)
    assert caller.release(lease)


@pytest.mark.parametrize("caller", ["sync"], indirect=True)
def test_exchange_that_is_interrupted_leaves_neither_lease(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """A time limit strikes when both were executed, and before a reply is read."""

    class Limit(Exception):
        pass

    def handler(*_: object) -> None:
        raise Limit

    def strike() -> None:
        wire.at_reply = lambda: None
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)

    lease = caller.acquire("me", memory_mb=100)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        wire.at_reply = strike
        with pytest.raises(Limit):
            caller.exchange(lease, "me", memory_mb=100)
    finally:
        signal.signal(signal.SIGUSR1, before)
    until(lambda: living(pool) == set(), 10)
    assert caller.release(caller.acquire("me", exclusive=True, memory_mb=900))


@pytest.mark.parametrize("caller", ["async"], indirect=True)
def test_exchange_that_is_cancelled_leaves_neither_lease(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """Its task is cancelled when both were executed, and before a reply is read."""
    lease = caller.acquire("me", memory_mb=100)
    client, struck = caller.client, threading.Event()

    def late() -> None:
        struck.set()
        time.sleep(0.2)

    async def cancelled() -> bool:
        wire.at_reply = late
        task = asyncio.create_task(client.exchange(lease, "me", memory_mb=100))
        await asyncio.to_thread(struck.wait, 10)
        wire.at_reply = lambda: None
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert caller.loop is not None
    assert caller.loop.run_until_complete(cancelled())
    until(lambda: living(pool) == set(), 10)
    assert caller.release(caller.acquire("me", exclusive=True, memory_mb=900))


def test_exchange_on_a_server_that_lost_functions_and_scripts_is_made_by_scripts(
    caller: Caller, pool: Pool
) -> None:
    """Both calls are not understood, then their scripts are loaded, and one lease is there."""
    lease = caller.acquire("me", memory_mb=100)
    functions.delete(pool.redis)
    pool.redis.script_flush()
    lease = caller.exchange(lease, "me", memory_mb=100)
    assert living(pool) == {lease.token}
    assert (pool.stats()["granted"], pool.stats()["released"]) == (2, 1)
    assert caller.release(lease)


def test_exchange_in_a_full_store_gives_back_and_is_refused(caller: Caller, pool: Pool) -> None:
    """A release needs no memory, an acquire does."""
    lease = caller.acquire("me", memory_mb=100)
    pool.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(BrokerUnavailable) as refused:
            caller.exchange(lease, "me", memory_mb=100)
        assert refused.value.code == "store_full"
        assert living(pool) == set()
    finally:
        pool.redis.config_set("maxmemory", 0)
