"""Leases of ours as rivals, and the class of each kind."""

from __future__ import annotations

import asyncio
import os
import threading
from itertools import count
from typing import Any

from rival import (
    ASYNC_LOCK,
    ETCD,
    FILES,
    HOST,
    LOCK,
    MANY,
    ONE,
    OURS,
    OURS_ASYNC,
    OURS_DURABLE,
    PING,
    POTTERY,
    REDIS_LOCK,
    RESLOCK,
    SCRIPT,
    WHOLE_MB,
    Blocking,
)
from rivals_elsewhere import Etcd, Files, Reslock
from rivals_in_redis import AsyncRedisPy, Ping, Pottery, RedisLock, RedisPy, Script

NUMBERS = count(1)


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


MADE: dict[str, Any] = {
    OURS: Lease, OURS_ASYNC: AsyncLease, OURS_DURABLE: AsyncLease, LOCK: RedisPy,
    ASYNC_LOCK: AsyncRedisPy, REDIS_LOCK: RedisLock, POTTERY: Pottery, ETCD: Etcd, FILES: Files,
    RESLOCK: Reslock, SCRIPT: Script, PING: Ping,
}  # fmt: skip

CLIENTS_ARE = dict.fromkeys(MADE, "threads") | dict.fromkeys(
    (OURS_ASYNC, OURS_DURABLE, ASYNC_LOCK), "tasks"
) | dict.fromkeys((FILES, RESLOCK), "processes")  # fmt: skip
"""Meaning of many clients of one kind: threads or tasks of one process, or processes."""
