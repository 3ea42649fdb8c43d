"""Callbacks of holders, on_lost and on_notice: they cost no lease its renewal."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from agent_sdk import AsyncLeaseClient, LeaseClient, Store
from agent_sdk.protocol.messages import Renewal
from agent_sdk.renewal.callbacks import WORKERS, Callbacks
from tests.stores import until
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from agent_sdk import Lease
    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.testing import TestBroker


pool = broker_of_the_file(devices=1, memory_mb=1000)
"""One device of 1000 MiB."""


def held(client: LeaseClient) -> Lease:
    lease = client.acquire("me", memory_mb=10, ttl_s=1)
    client.keep(lease)
    return lease


def found(lease: HeldLease, *words: str) -> None:
    """Let a renewal say these notices."""
    lease.accept(Renewal(lease.expires_at_ms, lease.remaining_ms, lease.trusted_until, words))


def test_slow_callbacks_cost_no_lease(client: LeaseClient) -> None:
    """Both kinds hang for longer than the ttl: the others go on, and are told of their own."""
    stuck, other, hang = held(client), held(client), threading.Event()
    told: list[str | None] = []
    stuck.on_lost(lambda _: hang.wait(20))
    stuck.on_notice(lambda _: hang.wait(20))
    found(stuck, "idle")
    client.release(stuck.token)
    assert stuck.wait_lost(2)
    other.on_lost(lambda lease: told.append(lease.lost_reason))
    assert not other.wait_lost(1.6)
    client.release(other.token)
    until(lambda: told == ["released"])
    hang.set()


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_callback_that_raises_is_logged(
    client: LeaseClient, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """Whatever it raises; the next callback is run, and other leases are renewed."""

    def fail(_: Lease) -> None:
        raise error

    lost, other, told = held(client), held(client), threading.Event()
    lost.on_lost(fail)
    lost.on_lost(lambda _: told.set())
    client.release(lost.token)
    assert told.wait(3)
    assert not other.wait_lost(1.2)
    assert any("on_lost" in r.message and r.exc_info for r in caplog.records)


def test_callback_may_use_its_client(client: LeaseClient, pool: TestBroker) -> None:
    """It releases the lease, takes another, and closes the client that renewed it."""
    own = LeaseClient(Store(pool.url), hostname=pool.host)
    lost, done = held(own), threading.Event()

    def act(lease: Lease) -> None:
        own.release(lease)
        with own.lease("again", memory_mb=10):
            own.close()
        done.set()

    lost.on_lost(act)
    client.release(lost.token)
    assert done.wait(3)
    assert client.leases() == ()


def test_notices_that_pile_up_are_told_at_once(client: LeaseClient) -> None:
    """The queue is bounded: a call that waits stands for all that came meanwhile, in order."""
    lease, hang, said = held(client), threading.Event(), []

    def look(lease: Lease) -> None:
        said.append(lease.notices)
        hang.wait(5)

    lease.on_notice(look)
    found(lease, "idle")
    until(lambda: said)
    for word in ("overuse", "degraded", "idle") * 50:
        found(lease, word)
    hang.set()
    until(lambda: len(said) == 2)
    client.release(lease)
    assert said == [("idle",), ("idle",)]


def test_threads_of_callbacks_are_bounded_and_end(caplog: pytest.LogCaptureFixture) -> None:
    """More leases than workers: the last wait, which is logged, and each is called once."""
    callbacks, hang, lock, called = Callbacks(), threading.Event(), threading.Lock(), []

    def call(number: int) -> None:
        hang.wait(10)
        with lock:
            called.append(number)

    def threads() -> int:
        return sum(t.name == "gpu-lease-callback" for t in threading.enumerate())

    with caplog.at_level(logging.ERROR):
        for number in range(WORKERS + 4):
            callbacks.submit(number, "on_lost", lambda number=number: call(number))  # type: ignore[misc] # a default
    assert threads() == WORKERS
    assert len(caplog.records) == 4
    hang.set()
    until(lambda: sorted(called) == [*range(WORKERS + 4)] and threads() == 0)


async def test_loss_that_no_thread_has_seen_is_told_at_once(pool: TestBroker) -> None:
    """A lease that is not kept is over by its holder's clock alone; with both clients."""
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        lease, told = client.acquire("me", memory_mb=10, ttl_s=1), list[str | None]()
        async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as other:
            second, heard = await other.acquire("me", memory_mb=10, ttl_s=1), asyncio.Event()
            await asyncio.sleep(1)
            lease.on_lost(lambda lost: told.append(lost.lost_reason))
            second.on_lost(lambda _: heard.set())
            await asyncio.wait_for(heard.wait(), 1)
    assert told == ["expired"]


def test_wait_for_the_loss_of_a_lease_without_end_may_be_endless() -> None:
    """One of the CPU that its holder gave itself is waited for as any other is."""
    with LeaseClient.from_url("redis://127.0.0.1:1") as client:
        client.deadline_s = 0.1
        lease = client.acquire("me", memory_mb=1000, on_unavailable="cpu")
        threading.Timer(0.2, client.release, (lease,)).start()
        assert lease.wait_lost(math.inf) is False


def test_blocking_lease_refuses_a_coroutine_function(client: LeaseClient) -> None:
    """It would never be awaited."""

    async def stop(_: object) -> None:
        pass

    lease = held(client)
    for register in (lease.on_lost, lease.on_notice):
        with pytest.raises(TypeError, match="coroutine"):
            register(stop)


async def test_coroutine_functions_run_in_the_loop(pool: TestBroker, client: LeaseClient) -> None:
    """One of an asyncio lease that fails, or takes its time, costs no lease its renewal."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as other:
        done = asyncio.Event()

        async def stop(_: object) -> None:
            await asyncio.sleep(0.01)
            done.set()

        async with (
            other.lease("a", memory_mb=10, ttl_s=1) as lease,
            other.lease("b", memory_mb=10, ttl_s=1) as second,
        ):
            lease.on_lost(lambda _: 1 / 0)
            lease.on_lost(stop)
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            client.release(lease.token)
            await asyncio.wait_for(done.wait(), 3)
            assert not await second.wait_lost(1.2)


async def test_wait_lost_keeps_nothing(pool: TestBroker) -> None:
    """It is said however often it is asked; and a release wakes each waiter."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        async with client.lease("a", memory_mb=10) as lease:
            kept = len(lease._callbacks), len(lease._watchers)
            for _ in range(50):
                assert not await lease.wait_lost(0.0001)
            assert (len(lease._callbacks), len(lease._watchers)) == kept
            waiting = asyncio.create_task(lease.wait_lost(60))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiting, 5) is False


def test_release_wakes_a_thread_that_waits(client: LeaseClient) -> None:
    """A lease with a long ttl was given back, and so is not lost."""
    lease, said = client.acquire("me", memory_mb=10, ttl_s=600), []
    thread = threading.Thread(target=lambda: said.append(lease.wait_lost(60)))
    thread.start()
    until(lambda: lease._watchers)
    client.release(lease)
    thread.join(5)
    assert said == [False]
    assert lease._watchers == []


def test_signal_handler_may_register_a_callback(client: LeaseClient) -> None:
    """It may come while its own thread holds the lock that callbacks are registered under."""
    lease = held(client)
    before = signal.signal(signal.SIGUSR1, lambda *_: lease.on_lost(print))
    try:
        with lease._lock.lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            until(lambda: lease._callbacks)
    finally:
        signal.signal(signal.SIGUSR1, before)
