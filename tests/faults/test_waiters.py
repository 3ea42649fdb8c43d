"""Many waiters in one process while the store misbehaves; and giving up at the worst moment."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import AsyncLeaseClient, LeaseError, OutcomeUnknown, Store
from agent_sdk.keys import Keys
from tests.audit import audit
from tests.faults.callers import Caller
from tests.pools import Pool, device
from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import redis

WAITERS = 200
DAY_MS = 86_400_000


@pytest.fixture
def alone() -> Iterator[Server]:
    """A server whose connections are all ours to kill."""
    with running() as server:
        yield server


@asynccontextmanager
async def client_of(server: Server, *, devices: int = 1) -> AsyncIterator[AsyncLeaseClient]:
    """A client of a new pool whose devices hold 1000 MiB each; audited at the end."""
    with server.connect() as admin:
        pool = Pool(admin, Keys(f"w-{uuid4().hex[:8]}"))
        found = tuple(device(f"gpu-{n}", index=n) for n in range(devices))
        pool.report(found, deadline_ms=DAY_MS)
        store = Store(server.url)
        async with AsyncLeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
            yield client
        await asyncio.to_thread(_nothing_left, pool)


def _nothing_left(pool: Pool) -> None:
    """Within 2 s nobody holds anything and nobody waits; then the audit."""
    until = time.monotonic() + 2
    while (rows := pool.redis.keys(f"{pool.keys.base}:record:*")) and time.monotonic() < until:
        time.sleep(0.02)
    assert not rows, rows
    audit(pool.redis, pool.keys)
    assert pool.hash("pool")["waiting"] == "0"
    assert pool.number("gpu-0", "leased_mb") == 0


def waiting(server: Server, client: AsyncLeaseClient) -> int:
    """Count the waiters in the queue."""
    with server.connect() as admin:
        return int(str(admin.hget(client.keys.pool, "waiting")))


async def until(true: Callable[[], bool], within_s: float = 20) -> None:
    """Wait until it is true, looking now and then."""
    ended = time.monotonic() + within_s
    for _ in iter(true, True):
        assert time.monotonic() < ended
        await asyncio.sleep(0.005)


def kill(admin: redis.Redis, blocking: bool) -> int:
    """Cut connections: the one that blocks, or all but this one; how many."""
    mine = admin.client_id()
    listed: Any = admin.client_list()
    found = [c["id"] for c in listed if int(c["id"]) != mine]
    if blocking:
        found = [c["id"] for c in listed if c["cmd"] == "blmpop"]
    for number in found:
        admin.client_kill_filter(_id=number)
    return len(found)


STORMS: dict[str, Callable[[redis.Redis], object]] = {
    "SCRIPT FLUSH": lambda admin: admin.script_flush(),
    "CLIENT KILL of the blocking connection": lambda admin: kill(admin, blocking=True),
    "CLIENT KILL of all": lambda admin: kill(admin, blocking=False),
    "CLIENT PAUSE for 2 s": lambda admin: admin.client_pause(2000),
}


@pytest.mark.parametrize("what", STORMS)
async def test_waiters_in_a_storm_are_all_served(alone: Server, what: str) -> None:
    """200 waiters for one GPU, and the store misbehaves in the middle: each gets it once."""
    served: list[int] = []
    async with client_of(alone) as client:

        async def one(number: int) -> None:
            async with client.lease(f"w{number}", memory_mb=900, wait_s=60):
                served.append(number)
                await asyncio.sleep(0.002)

        tasks = [asyncio.create_task(one(n)) for n in range(WAITERS)]
        await until(lambda: len(served) >= WAITERS // 4)
        with alone.connect() as admin:
            hit = STORMS[what](admin)
        assert hit
        async with asyncio.timeout(40):
            await asyncio.gather(*tasks)
    assert sorted(served) == list(range(WAITERS))


async def test_waiters_of_a_process_use_two_connections_and_the_keeper(alone: Server) -> None:
    """However many wait: commands, inbox, and the keeper once a lease is renewed."""
    async with client_of(alone) as client:
        held = await client.acquire("holder", memory_mb=900)
        client.keep(held)
        tasks = [
            asyncio.create_task(client.acquire(f"w{n}", memory_mb=900, wait_s=60))
            for n in range(100)
        ]
        await until(lambda: waiting(alone, client) == len(tasks))
        with alone.connect() as admin:
            listed: Any = admin.client_list()
            assert len(listed) - 2 <= 3  # without this one and the pool's
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.release(held)


@pytest.mark.slow
async def test_giving_up_at_the_moment_of_the_offer_leaks_nothing(server: Server) -> None:
    """A thousand races of a release against a cancelled wait, or one that ends just then."""
    rng = random.Random(7)
    async with client_of(server) as client:

        async def waiter(number: int) -> None:
            wait_s = rng.uniform(0.0005, 0.004) if number % 2 else 60
            with suppress(LeaseError):
                lease = await client.acquire("waits", memory_mb=900, wait_s=wait_s)
                await client.release(lease)

        for number in range(1000):
            held = await client.acquire("holder", memory_mb=900, wait_s=20)
            task = asyncio.create_task(waiter(number))
            await asyncio.sleep(rng.uniform(0, 0.003))
            await client.release(held)
            if number % 2 == 0:
                await asyncio.sleep(rng.uniform(0, 0.003))
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        began = time.monotonic()
        await client.release(await client.acquire("last", memory_mb=900, wait_s=20))
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_wait_beside_a_store_that_hangs_ends_with_the_last_calls_deadline(
    alone: Server, kind: str
) -> None:
    """The time that the waiter has waited is no part of the rest of its wait."""
    with alone.connect() as admin:
        pool = Pool(admin)
        pool.report((device("D0"),), deadline_ms=DAY_MS)
    caller = Caller(kind, alone.url, pool, 1.0)
    caller.acquire("holder", memory_mb=900)
    process = alone.process
    assert process is not None
    stop = threading.Timer(0.3, process.send_signal, (signal.SIGSTOP,))
    stop.start()
    began = time.monotonic()
    try:
        with pytest.raises(OutcomeUnknown):
            caller.acquire("next", memory_mb=900, wait_s=3)
        assert 3 <= time.monotonic() - began < 3 + 1 + 1.5
    finally:
        stop.join()
        process.send_signal(signal.SIGCONT)
        caller.close()
        if caller.loop:
            caller.loop.run_until_complete(asyncio.sleep(0))  # transports close at a next turn
            caller.loop.close()


async def test_cancelled_wait_leaves_no_record(server: Server) -> None:
    """A cancelled task is out of the queue within a second."""
    async with client_of(server) as client:
        held = await client.acquire("holder", memory_mb=900)
        task = asyncio.create_task(client.acquire("waits", memory_mb=900, wait_s=60))
        await until(lambda: waiting(server, client) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: waiting(server, client) == 0)
        await client.release(held)
