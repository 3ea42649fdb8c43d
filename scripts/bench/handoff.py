"""The hand-off, between two processes: one releases, in the other somebody waits.

A round is: this process gives up what it holds; a waiter of the other process has it, and says at
what time; it is handed back here. So many wait all the while. The clock is CLOCK_MONOTONIC, which
two processes of one machine share.

A peer has no queue to come back through: it is handed back by writing our value into its key, which
is not part of what is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import redis
import redis.asyncio
import redis_lock
from pottery import AIORedlock, Redlock

from agent_sdk import AsyncLeaseClient, LeaseClient, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

NAME = "handoff"
WHOLE_MB, HOST = 24_064, "host-0"
"""A whole device of the bench's pool: one lease at a time, if the others are taken."""

HELD_S = 600
BACK_AFTER_S = 0.01
"""Within this the releaser waits in the queue again, before all others."""

OURS, LOCK, REDIS_LOCK, POTTERY = (
    "gpu-lease-broker",
    "redis-py Lock",
    "python-redis-lock",
    "pottery",
)


class Holder(Protocol):
    """The releasing side."""

    def take(self) -> None:
        """Hold it again."""

    def give(self) -> None:
        """Release it."""

    def settled(self, waiters: int) -> None:
        """Wait until so many wait."""


class LeaseHolder:
    """Ours: a lease on a whole device."""

    def __init__(self, url: str) -> None:
        self._client = LeaseClient(Store(url, 30.0), pool=NAME, hostname=HOST)
        self._lease: Any = None

    def take(self) -> None:
        """Wait in the queue before all others."""
        self._lease = self._client.acquire(
            "holder", memory_mb=WHOLE_MB, ttl_s=HELD_S, wait_s=60, priority=9
        )

    def give(self) -> None:
        """Release it."""
        self._client.release(self._lease)

    def settled(self, waiters: int) -> None:
        """Wait for the queue to have this many waiters."""
        while self._client.pool().waiting != waiters:
            time.sleep(0.002)


class LockHolder:
    """Peers: a lock by its key, which a waiter hands back by writing our value."""

    def __init__(self, url: str, kind: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._kind = kind
        self.key, self._lock = lock_of(kind, self._redis)
        self._lock.acquire()
        self._redis.set(f"{NAME}:value", self._redis.get(self.key))

    def take(self) -> None:
        """Wait for the other process to write our value."""
        while self._redis.get(self.key) != self._redis.get(f"{NAME}:value"):
            time.sleep(0.002)
        if self._kind == LOCK:
            self._lock.local.token = self._redis.get(self.key)

    def give(self) -> None:
        """Release it."""
        self._lock.release()

    def settled(self, waiters: int) -> None:
        """Nobody can say who polls: give them time."""
        del waiters
        time.sleep(0.02)


def lock_of(kind: str, client: Any) -> tuple[str, Any]:
    """Return a lock of that kind on our name, and its key in Redis."""
    if kind == LOCK:
        return NAME, client.lock(NAME, timeout=HELD_S, thread_local=False)
    if kind == REDIS_LOCK:
        return f"lock:{NAME}", redis_lock.Lock(client, NAME, expire=HELD_S)
    return f"redlock:{NAME}", Redlock(key=NAME, masters={client}, auto_release_time=HELD_S)


@contextmanager
def waiting(kind: str, url: str, waiters: int) -> Iterator[Connection]:
    """Run that many waiters in a process of their own; each hand-off sends its time in ns."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=wait_all, args=(kind, url, waiters, there), daemon=True)
    process.start()
    try:
        here.recv()
        yield here
    finally:
        process.kill()
        process.join()


def wait_all(kind: str, url: str, waiters: int, pipe: Connection) -> None:
    """Run the other process."""
    if kind == REDIS_LOCK:
        wait_in_threads(url, waiters, pipe)
    else:
        asyncio.run(wait_in_tasks(kind, url, waiters, pipe))


async def wait_in_tasks(kind: str, url: str, waiters: int, pipe: Connection) -> None:
    """Each task waits, says when it had it, hands it back, and waits anew."""
    client = AsyncLeaseClient(Store(url, 30.0), pool=NAME, hostname=HOST)
    peer = redis.asyncio.Redis.from_url(url)

    async def lease(number: int) -> None:
        while True:
            held = await client.acquire(
                f"waiter-{number // 100}", memory_mb=WHOLE_MB, ttl_s=HELD_S, wait_s=600
            )
            pipe.send(time.monotonic_ns())
            await asyncio.sleep(BACK_AFTER_S)
            await client.release(held)

    async def lock(_: int) -> None:
        while True:
            if kind == LOCK:
                mine: Any = peer.lock(NAME, timeout=HELD_S)
                key = NAME
            else:
                mine = AIORedlock(key=NAME, masters={peer}, auto_release_time=HELD_S)
                key = f"redlock:{NAME}"
            await mine.acquire()
            pipe.send(time.monotonic_ns())
            await peer.set(key, await peer.get(f"{NAME}:value"), px=HELD_S * 1000)

    tasks = [
        asyncio.create_task((lease if kind == OURS else lock)(number)) for number in range(waiters)
    ]
    pipe.send("ready")
    await asyncio.gather(*tasks)


def wait_in_threads(url: str, waiters: int, pipe: Connection) -> None:
    """Measure the same with a thread for each."""
    client = redis.Redis.from_url(url)
    one = threading.Lock()

    def lock() -> None:
        while True:
            redis_lock.Lock(client, NAME, expire=HELD_S).acquire()
            at = time.monotonic_ns()
            with one:
                pipe.send(at)
            client.set(f"lock:{NAME}", client.get(f"{NAME}:value") or b"", px=HELD_S * 1000)

    threads = [threading.Thread(target=lock, daemon=True) for _ in range(waiters)]
    for thread in threads:
        thread.start()
    pipe.send("ready")
    for thread in threads:
        thread.join()


@dataclass(frozen=True, slots=True)
class Handoff:
    """Hand-offs of one kind with so many waiters, in µs, and PINGs of the same moments."""

    kind: str
    waiters: int
    us: tuple[float, ...]
    ping_us: tuple[float, ...]


def measure(holder: Holder, kind: str, url: str, waiters: int, rounds: int, ping: Any) -> Handoff:
    """Hand it off so many times; the first tells nothing: connections are made then."""
    found, pings = [], []
    with waiting(kind, url, waiters) as pipe:
        for number in range(rounds + 1):
            holder.settled(waiters)
            pings.append(ping())
            released_at = time.monotonic_ns()
            holder.give()
            if not pipe.poll(30):
                raise SystemExit(f"{kind}: nobody took over within 30 s")
            taken_at = pipe.recv()
            holder.take()
            if number:
                found.append((taken_at - released_at) / 1000)
    return Handoff(kind, waiters, tuple(found), tuple(pings[1:]))
