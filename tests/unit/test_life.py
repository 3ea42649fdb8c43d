"""A client's whole life: dropped, closed, used after that; and an interpreter that ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis._parsers import hiredis
from redis.exceptions import RedisError

from agent_sdk import (
    AsyncLeaseClient,
    LeaseClient,
    LeaseLost,
    NoCapacity,
    Store,
)
from agent_sdk.store.exchange import FRESH_S
from tests.api.brokers import environment
from tests.stores import until
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

unclosed = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""Python warns of the sockets of a loop that ended before its client was closed."""

WHOLE: Any = {"memory_mb": 100, "exclusive": True}


pool = broker_of_the_file(devices=1, memory_mb=1000)
"""One device of 1000 MiB."""


@pytest.fixture
def watch(pool: TestBroker) -> Iterator[LeaseClient]:
    """A client that looks on; nothing is left in the pool when the test is over."""
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        client.pool()
        yield client
        until(lambda: client.reap() and not client.leases() and not client.queue(), 5)


def new(pool: TestBroker) -> LeaseClient:
    return LeaseClient(Store(pool.url), hostname=pool.host)


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gpu-lease")]


def connections(client: LeaseClient) -> int:
    return len(client.redis.client_list())


@contextmanager
def nothing_outlives(client: LeaseClient) -> Iterator[None]:
    """No thread and no connection of this block is left soon after it, without a collection."""
    gc.collect()
    before = sorted(ours()), connections(client)
    gc.disable()
    try:
        yield
        until(lambda: (sorted(ours()), connections(client)) == before, 10)
    finally:
        gc.enable()


def work(pool: TestBroker) -> None:
    """One job of a worker that makes a client for each, and closes none."""
    client = new(pool)
    with client.lease("job", memory_mb=10):
        client.renew(client.adopt(client.leases()[-1].token))


def wait_in_vain(pool: TestBroker) -> None:
    """A wait starts one more thread and one more connection."""
    client = new(pool)
    with client.lease("holder", **WHOLE), pytest.raises(NoCapacity):
        client.acquire("waiter", wait_s=0.05, **WHOLE)


def abandon(pool: TestBroker) -> None:
    """Give back first what may have been granted."""
    client = new(pool)
    client._keeper.abandon(client.acquire("lost", memory_mb=10).token)


@pytest.mark.parametrize("job", [work, wait_in_vain, abandon])
def test_client_that_nobody_closes_leaves_nothing(
    pool: TestBroker, watch: LeaseClient, job: Any
) -> None:
    """With the last reference its threads and connections end."""
    with nothing_outlives(watch):
        for _ in range(5):
            job(pool)


async def test_async_client_that_nobody_closes_leaves_nothing(
    pool: TestBroker, watch: LeaseClient
) -> None:
    """Dropped while its loop goes on: by this thread, or by another."""

    async def job(client: AsyncLeaseClient) -> None:
        async with client.lease("job", **WHOLE):
            with pytest.raises(NoCapacity):
                await client.acquire("waiter", wait_s=0.05, **WHOLE)

    gc.collect()
    before = sorted(ours()), connections(watch)
    for _ in range(3):
        held = [AsyncLeaseClient(Store(pool.url), hostname=pool.host) for _ in range(2)]
        await job(held[0])
        await job(held[1])
        held.pop()
        await asyncio.to_thread(held.pop)
    for _ in range(200):
        if (sorted(ours()), connections(watch)) == before:
            break
        await asyncio.sleep(0.01)
    assert connections(watch) == before[1]


@unclosed
def test_async_clients_of_loops_that_ended_leave_nothing(
    pool: TestBroker, watch: LeaseClient
) -> None:
    """One client and one loop for each job: their sockets close as they are collected."""

    async def job() -> None:
        client = AsyncLeaseClient(Store(pool.url), hostname=pool.host)
        async with client.lease("job", memory_mb=10):
            pass

    before = connections(watch)
    for _ in range(3):
        asyncio.run(job())
    gc.collect()
    until(lambda: connections(watch) == before, 2)
    until(lambda: "gpu-lease-keeper" not in ours(), 2)


def test_kept_lease_outlives_its_client(pool: TestBroker, watch: LeaseClient) -> None:
    """It is renewed until it ends: then the thread that renewed it ends too."""
    with nothing_outlives(watch):
        client = new(pool)
        lease = client.acquire("job", memory_mb=10, ttl_s=1)
        client.keep(lease)
        del client
        assert not lease.wait_lost(1.5)
        watch.release(lease.token)
        assert lease.wait_lost(1)


def test_keep_twice_keeps_both(pool: TestBroker, watch: LeaseClient) -> None:
    """The same object, or another of the same lease: each is renewed."""
    with new(pool) as client:
        lease = client.acquire("job", memory_mb=10, ttl_s=1)
        other = client.adopt(lease.token)
        for one in (lease, lease, other):
            client.keep(one)
        assert not lease.wait_lost(1.2)
        assert not other.lost
        client.release(lease)
        assert other.wait_lost(2)
        with pytest.raises(LeaseLost, match="released"):
            client.keep(lease)


def test_closed_client_works_on(pool: TestBroker, watch: LeaseClient) -> None:
    """It connects anew and renews what it then keeps; its thread ends with that."""
    with nothing_outlives(watch):
        client = new(pool)
        with client.lease("before", memory_mb=10):
            client.close()
            with client.lease("after", memory_mb=10, ttl_s=1) as lease:
                assert not lease.wait_lost(1.3)
        client.close()
        client.close()


def test_call_during_a_close_by_another_thread_is_made(
    pool: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The close comes when the call has its connection; it connects anew."""
    asked: list[Any] = []
    before = hiredis._socket_can_read

    def can_read(sock: socket.socket, timeout: float = 0) -> bool:
        if not asked:
            asked.append(sock)
            closing = threading.Thread(target=client.close)
            closing.start()
            closing.join()
        return before(sock, timeout)

    client = new(pool)
    monkeypatch.setattr(hiredis, "_socket_can_read", can_read)
    for call in (lambda: client.release(client.acquire("me", memory_mb=10)), client.leases):
        asked.clear()
        time.sleep(2 * FRESH_S)  # then it is asked whether it is still there
        assert call() in (True, ())
        assert asked[0].fileno() == -1
    client.close()


@unclosed
async def test_async_client_that_another_loop_closes(pool: TestBroker, watch: LeaseClient) -> None:
    """Ended, or running in another thread: no error, and the connection is gone."""
    before = connections(watch)
    client = AsyncLeaseClient(Store(pool.url), hostname=pool.host)

    async def use() -> None:
        async with client.lease("job", memory_mb=10):
            pass

    await asyncio.to_thread(asyncio.run, use())
    await client.close()
    await use()  # the ended loop's client is this one's now
    await asyncio.to_thread(asyncio.run, client.close())
    for _ in range(200):
        gc.collect()
        if connections(watch) == before:
            break
        await asyncio.sleep(0.01)
    assert connections(watch) == before
    async with client.lease("again", memory_mb=10) as lease:
        assert not lease.lost
    await client.close()


async def test_cancelled_close_ends_as_cancelled_and_stops_renewing(
    pool: TestBroker, watch: LeaseClient
) -> None:
    """While it waits for the task that listens for hints, whose own cancellation is none of it."""
    client = AsyncLeaseClient(Store(pool.url), hostname=pool.host)
    lease = await client.acquire("kept", memory_mb=1000, ttl_s=1)
    client.keep(lease)
    waits = asyncio.create_task(client.acquire("waits", memory_mb=1000, wait_s=60))
    await asyncio.to_thread(until, lambda: watch.pool().waiting == 1)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert await lease.wait_lost(3)
    await client.close()


async def test_async_call_that_is_away_hears_of_the_close(pool: TestBroker) -> None:
    """Another loop closes the client while a call of this one is on its way: it ends."""
    client = AsyncLeaseClient(Store(pool.url), hostname=pool.host, deadline_s=0.5)
    await client.pool()
    away = asyncio.create_task(client._calls.execute("BLPOP", "no-such-list", 30))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(asyncio.run, client.close())
    with pytest.raises(RedisError):
        await asyncio.wait_for(away, 3)
    await client.close()


class Late(Exception):
    """A time limit of the caller's, which is an ordinary exception."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_time_limit_in_the_queue_leaves_it(pool: TestBroker, watch: LeaseClient) -> None:
    """A time limit leaves the queue as Ctrl-C does."""
    with new(pool) as client:
        held = client.acquire("holder", **WHOLE)
        with pytest.raises(Late), limit(0.3):
            client.acquire("waiter", wait_s=30, **WHOLE)
        until(lambda: not watch.queue(), 3)
        client.release(held)
    del client
    gc.collect()


SCRIPT = """
import asyncio, os, signal, sys, threading, time
from agent_sdk import AsyncLeaseClient, GPUOrchestratorClient, LeaseClient, Store
url, host = sys.argv[1:3]
client = LeaseClient(Store(url), hostname=host, deadline_s=1)
"""

NO_THREADS = """
def none(*args, **kwargs):
    raise RuntimeError("can't start new thread")
threading._start_new_thread = none
threading._start_joinable_thread = none
"""
"""The error of a process at its limit; a limit of the kernel's would be all of the user's."""

SCRIPTS = {
    "generator": """
def held():
    with client.lease("held", memory_mb=10, ttl_s=0) as lease:
        while True:
            yield lease
block = held()
next(block)
print("end", flush=True)
""",
    "generator without a store": """
def held():
    with client.lease("held", memory_mb=10, ttl_s=1) as lease:
        while True:
            yield lease
block = held()
next(block)
client.store = None
client.redis.connection_pool.connection_kwargs["path"] = "/nonexistent"
client.redis.connection_pool.disconnect()
print("end", flush=True)
""",
    "async generator": """
async def main():
    global block
    own = AsyncLeaseClient(Store(url), hostname=host)
    async def held():
        async with own.lease("held", memory_mb=10, ttl_s=0) as lease:
            while True:
                yield lease
    block = held()
    await anext(block)
asyncio.run(main())
print("end", flush=True)
""",
    "async loop that was only stopped": """
own = AsyncLeaseClient(Store(url), hostname=host)
async def held():
    async with own.lease("held", memory_mb=10, ttl_s=1) as lease:
        while True:
            yield lease
block, loop = held(), asyncio.new_event_loop()
loop.run_until_complete(anext(block))
print("end", flush=True)
""",
    "daemon thread": """
def hold():
    with client.lease("held", memory_mb=10, ttl_s=1):
        time.sleep(60)
threading.Thread(target=hold, daemon=True).start()
while not client.leases():
    time.sleep(0.01)
print("end", flush=True)
""",
    "atexit": """
import atexit
def late():
    with client.lease("late", memory_mb=10, ttl_s=0) as lease:
        print("end", lease.lost, flush=True)
atexit.register(late)
""",
    "no thread": NO_THREADS
    + """
try:
    with client.lease("held", memory_mb=10, ttl_s=0):
        print("entered")
except RuntimeError as error:
    assert "ulimit -u" in str(error), error
    print("end", flush=True)
""",
    "no thread to wait with": NO_THREADS
    + """
held = client.acquire("held", memory_mb=10, exclusive=True, ttl_s=1)
lease = client.acquire("next", memory_mb=10, exclusive=True, ttl_s=0, wait_s=20)
client.release(lease)
print("end", flush=True)
""",
    "no thread to give back with": NO_THREADS
    + """
def ring(*_):
    raise KeyboardInterrupt
held = client.acquire("held", memory_mb=10, exclusive=True, ttl_s=0)
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    client.acquire("next", memory_mb=10, exclusive=True, ttl_s=0, wait_s=20)
except KeyboardInterrupt:
    assert not client.queue()
client.release(held)
print("end", flush=True)
""",
    "no thread for asyncio": NO_THREADS
    + """
async def main():
    own = AsyncLeaseClient(Store(url), hostname=host)
    try:
        async with own.lease("held", memory_mb=10, ttl_s=0):
            print("entered")
    except RuntimeError:
        print("end", flush=True)
    await own.close()
loop = asyncio.new_event_loop()
loop.run_until_complete(main())  # asyncio.run itself needs a thread when it ends
loop.close()
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_process_ends_and_leaves_nothing(pool: TestBroker, watch: LeaseClient, name: str) -> None:
    """However its interpreter ends, and whatever it cannot have: soon, and with nothing held."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + SCRIPTS[name], pool.url, pool.host],
        env=environment(PYTHONPATH=os.getcwd()),  # noqa: PTH109 - as PYTHONPATH wants it
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.split()[:1] == ["end"], done.stderr
    assert done.returncode == 0, done.stderr
