"""Locks in Redis, and the floors: what one call costs."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

from rival import Blocking

SCRIPT_SOURCE = (
    "redis.call('SET', KEYS[1], ARGV[1], 'PX', 600000) return redis.call('DEL', KEYS[1])"
)


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
        """Wait in whole seconds, and no longer than the lock lives."""
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
