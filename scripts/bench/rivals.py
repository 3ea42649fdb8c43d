"""Rivals of a lease, each behind the same few words: acquire, release, fence.

A client is made for one resource: `shared-...` is one that all contend for, `own-...` belongs to
one client alone. The methods are coroutines so that one body drives both worlds; those of a client
that blocks never suspend, and `blocking` runs them without a loop.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import socket
import threading
import time
from base64 import b64encode
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
NUMBERS = count(1)

OURS, OURS_ASYNC = "gpu-lease-broker", "gpu-lease-broker, asyncio"
OURS_DURABLE = "gpu-lease-broker, asyncio, fsync of every write"
LOCK, ASYNC_LOCK = "redis-py Lock", "redis.asyncio Lock"
REDIS_LOCK, POTTERY = "python-redis-lock", "pottery Redlock"
ETCD, FILES = "etcd lease + lock", "filelock picker"
SCRIPT, PING = "one EVALSHA of SET + DEL", "one raw PING"

WHOLE_MB, HOST, MANY, ONE = 24_064, "host-0", "many", "one"
"""A whole device; the host; the pool for clients of their own, and that of one device for all."""

SCRIPT_SOURCE = (
    "redis.call('SET', KEYS[1], ARGV[1], 'PX', 600000) return redis.call('DEL', KEYS[1])"
)


class Rival(Protocol):
    """One client of one resource."""

    fence: int | None

    async def acquire(self, wait_s: float) -> bool:
        """Return whether it got it in that time; 0 = now or not at all."""

    async def release(self) -> None:
        """Give it back."""

    async def pause(self, seconds: float) -> None:
        """Let others run."""

    def told(self, within_s: float) -> str:
        """Return how the holder learns of its loss, without asking; empty: it does not."""


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end what never suspends."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("a blocking client suspended")


class Blocking:
    """Base of clients that block; they keep no fence and tell their holder nothing."""

    fence: int | None = None

    async def pause(self, seconds: float) -> None:
        """Let others run."""
        time.sleep(seconds)  # noqa: ASYNC251 - there is no loop

    def told(self, within_s: float) -> str:
        """Nothing comes by itself."""
        time.sleep(within_s)
        return ""


class Lease(Blocking):
    """Ours, from threads that share a client."""

    _clients: dict[tuple[str, str], Any] = {}  # noqa: RUF012 - one for each process
    _one = threading.Lock()

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        self.shared = name.startswith("shared")
        self.client = self.client_of(where, ONE if self.shared else MANY)
        self.agent, self.ttl_s = f"agent-{os.getpid()}-{next(NUMBERS)}", ttl_s
        self.held: Any = None

    @classmethod
    def client_of(cls, where: str, pool: str) -> Any:
        """Return the one client of this process for that pool."""
        from agent_sdk import LeaseClient, Store  # noqa: PLC0415 - only where it is measured

        with cls._one:
            key = (where, pool)
            if key not in cls._clients:
                cls._clients[key] = LeaseClient(Store(where, 30.0), pool=pool, hostname=HOST)
            return cls._clients[key]

    def ask(self, wait_s: float) -> dict[str, Any]:
        """Arguments of an acquire: all of the one device, or a share of any."""
        if self.shared:
            return {"memory_mb": WHOLE_MB, "ttl_s": self.ttl_s, "wait_s": wait_s, "host": "any"}
        return {"memory_mb": 8, "ttl_s": self.ttl_s, "host": "any"}

    async def acquire(self, wait_s: float) -> bool:
        """Acquire a lease that is renewed while its process lives, with a waiter behind it."""
        from agent_sdk import Refused, StillWaiting  # noqa: PLC0415 - only in the process that measures it

        try:
            self.held = self.client.acquire(self.agent, **self.ask(wait_s))
        except (Refused, StillWaiting):
            return False
        self.fence = self.held.fence
        if self.shared:
            self.client.keep(self.held)
        return True

    async def release(self) -> None:
        """Give it back."""
        self.client.release(self.held)

    def told(self, within_s: float) -> str:
        """By the thread that renews."""
        return self.held.lost_reason or "lost" if self.held.wait_lost(within_s) else ""


class AsyncLease(Lease):
    """Ours, from tasks that share a client."""

    @classmethod
    def client_of(cls, where: str, pool: str) -> Any:
        """Return the one client of this process for that pool."""
        from agent_sdk import AsyncLeaseClient, Store  # noqa: PLC0415 - only in the process that measures it

        key = (f"async {where}", pool)
        if key not in cls._clients:
            cls._clients[key] = AsyncLeaseClient(Store(where, 30.0), pool=pool, hostname=HOST)
        return cls._clients[key]

    async def acquire(self, wait_s: float) -> bool:
        """Return the same, awaited."""
        from agent_sdk import Refused, StillWaiting  # noqa: PLC0415 - only in the process that measures it

        try:
            self.held = await self.client.acquire(self.agent, **self.ask(wait_s))
        except (Refused, StillWaiting):
            return False
        self.fence = self.held.fence
        if self.shared:
            self.client.keep(self.held)
        return True

    async def release(self) -> None:
        """Give it back."""
        await self.client.release(self.held)

    async def pause(self, seconds: float) -> None:
        """Let other tasks run."""
        await asyncio.sleep(seconds)


class RedisPy(Blocking):
    """redis-py's Lock; its threads share a pool of connections."""

    _redis: dict[str, Any] = {}  # noqa: RUF012 - one for each process

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        import redis  # noqa: PLC0415 - only in the process that measures it

        self.redis = self._redis.setdefault(where, redis.Redis.from_url(where))
        self.name, self.ttl_s, self.lock = name, ttl_s, self.made(name, ttl_s)

    def made(self, name: str, ttl_s: float) -> Any:
        """Return the library's own object."""
        return self.redis.lock(name, timeout=ttl_s, thread_local=False)

    async def acquire(self, wait_s: float) -> bool:
        """With the library's own way to wait."""
        return bool(self.lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None))

    async def release(self) -> None:
        """Give it back."""
        self.lock.release()


class AsyncRedisPy(RedisPy):
    """redis.asyncio's Lock."""

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        import redis.asyncio  # noqa: PLC0415 - only in the process that measures it

        key = f"async {where}"
        self.redis = self._redis.setdefault(key, redis.asyncio.Redis.from_url(where))
        self.name, self.ttl_s, self.lock = name, ttl_s, self.made(name, ttl_s)

    async def acquire(self, wait_s: float) -> bool:
        """Return the same, awaited."""
        return bool(await self.lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None))

    async def release(self) -> None:
        """Give it back."""
        await self.lock.release()

    async def pause(self, seconds: float) -> None:
        """Let other tasks run."""
        await asyncio.sleep(seconds)


class RedisLock(RedisPy):
    """python-redis-lock, which wakes its waiters by a list."""

    def made(self, name: str, ttl_s: float) -> Any:
        """Return the library's own object."""
        import redis_lock  # noqa: PLC0415 - only in the process that measures it

        return redis_lock.Lock(self.redis, name, expire=int(ttl_s))

    async def acquire(self, wait_s: float) -> bool:
        """Return its waits are whole seconds, and no longer than the lock lives."""
        self.lock = self.made(self.name, self.ttl_s)
        until = time.monotonic() + wait_s
        if not wait_s:
            return bool(self.lock.acquire(blocking=False))
        while True:
            left = max(1, min(int(self.ttl_s), int(until - time.monotonic())))
            if self.lock.acquire(timeout=left):
                return True
            if time.monotonic() >= until:
                return False


class Pottery(RedisPy):
    """pottery's Redlock on one master."""

    def made(self, name: str, ttl_s: float) -> Any:
        """Return the library's own object."""
        from pottery import Redlock  # noqa: PLC0415 - only in the process that measures it

        return Redlock(key=name, masters={self.redis}, auto_release_time=ttl_s)

    async def acquire(self, wait_s: float) -> bool:
        """With the library's own way to wait."""
        return bool(self.lock.acquire(blocking=wait_s > 0, timeout=wait_s or -1))


class Etcd(Blocking):
    """etcd's lock service by its JSON gateway; one session, which is a lease kept alive."""

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        self.host, _, self.port = where.removeprefix("http://").partition(":")
        self.wire = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        self.name, self.ttl_s = b64encode(name.encode()).decode(), max(2, int(ttl_s))
        self.lease = self.post("/v3/lease/grant", {"TTL": self.ttl_s})["ID"]
        self.key, self.over = "", threading.Event()
        threading.Thread(target=self.live, daemon=True).start()

    def live(self) -> None:
        """Keep the session alive on a connection of its own."""
        wire = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        while True:
            time.sleep(self.ttl_s / 3)
            body = json.dumps({"ID": self.lease})
            wire.request("POST", "/v3/lease/keepalive", body)
            if "TTL" not in json.loads(wire.getresponse().read())["result"]:
                self.over.set()
                return

    def told(self, within_s: float) -> str:
        """By the next keep-alive of the session."""
        return "the session's keep-alive says it" if self.over.wait(within_s) else ""

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 60) -> dict[str, Any]:
        """Return one call of the gateway."""
        if self.wire.sock:
            self.wire.sock.settimeout(timeout_s)
        self.wire.timeout = timeout_s
        self.wire.request("POST", path, json.dumps(body))
        reply = self.wire.getresponse()
        said: dict[str, Any] = json.loads(reply.read())
        if reply.status != http.HTTPStatus.OK:
            raise RuntimeError(f"etcd: {said}")
        return said

    async def acquire(self, wait_s: float) -> bool:
        """Give up: close the connection, and the server takes the waiter out of its queue."""
        try:
            said = self.post(
                "/v3/lock/lock", {"name": self.name, "lease": self.lease}, wait_s or 0.1
            )
        except TimeoutError:
            self.wire.close()
            return False
        self.key, self.fence = said["key"], int(said["header"]["revision"])
        return True

    async def release(self) -> None:
        """Give it back."""
        self.post("/v3/lock/unlock", {"key": self.key})


class Files(Blocking):
    """The home-made choice: a file lock for each GPU, tried where a table says it is free."""

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - only in the process that measures it

        del ttl_s
        self.timeout = Timeout
        gpus = Path(where) / ("one.csv" if name.startswith("shared") else "many.csv")
        self.table, self.make = gpus, FileLock
        self.held: Any = None

    def free(self) -> list[str]:
        """GPUs with enough memory, as `nvidia-smi --query-gpu=index,memory.free` prints them."""
        rows = [line.split(", ") for line in self.table.read_text().splitlines()]
        found = [index for index, free in rows if int(free) >= WHOLE_MB]
        random.shuffle(found)
        return found

    async def acquire(self, wait_s: float) -> bool:
        """Lock the first free one; else try again in 50 ms, as filelock itself does."""
        until = time.monotonic() + wait_s
        while True:
            for index in self.free():
                lock = self.make(f"{self.table}.{index}.lock")
                try:
                    lock.acquire(timeout=0)
                except self.timeout:
                    continue
                self.held = lock
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)  # noqa: ASYNC251 - there is no loop

    async def release(self) -> None:
        """Give it back."""
        self.held.release()


class Script(RedisPy):
    """A floor: one script that sets a key and takes it away."""

    def made(self, name: str, ttl_s: float) -> Any:
        """Return the script's digest."""
        del name, ttl_s
        return self.redis.script_load(SCRIPT_SOURCE)

    async def acquire(self, wait_s: float) -> bool:
        """Return the whole pair."""
        del wait_s
        self.redis.evalsha(self.lock, 1, self.name, os.getpid())
        return True

    async def release(self) -> None:
        """Nothing is left to give back."""


class Ping(Blocking):
    """A floor: one PING on a bare socket."""

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        del name, ttl_s
        self.wire = socket.socket(socket.AF_UNIX)
        self.wire.connect(where.removeprefix("unix://"))

    async def acquire(self, wait_s: float) -> bool:
        """Return the whole pair."""
        del wait_s
        self.wire.sendall(b"PING\r\n")
        self.wire.recv(64)
        return True

    async def release(self) -> None:
        """Nothing is left to give back."""


MADE: dict[str, Any] = {
    OURS: Lease, OURS_ASYNC: AsyncLease, OURS_DURABLE: AsyncLease, LOCK: RedisPy,
    ASYNC_LOCK: AsyncRedisPy, REDIS_LOCK: RedisLock, POTTERY: Pottery, ETCD: Etcd, FILES: Files,
    SCRIPT: Script, PING: Ping,
}  # fmt: skip

CLIENTS_ARE = dict.fromkeys(MADE, "threads") | dict.fromkeys(
    (OURS_ASYNC, OURS_DURABLE, ASYNC_LOCK), "tasks"
) | {FILES: "processes"}  # fmt: skip
"""Meaning of many clients of one kind: threads or tasks of one process, or processes."""
