"""Rivals of a lease: their names, and the few words that each has: acquire, release, fence.

A client is made for one resource: `shared-...` is one that all contend for, `own-...` belongs to
one client alone. The methods are coroutines so that one body drives both worlds; those of a client
that blocks never suspend, and `blocking` runs them without a loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

OURS, OURS_ASYNC = "gpu-lease-broker", "gpu-lease-broker, asyncio"
OURS_DURABLE = "gpu-lease-broker, asyncio, fsync of every write"
LOCK, ASYNC_LOCK = "redis-py Lock", "redis.asyncio Lock"
REDIS_LOCK, POTTERY = "python-redis-lock", "pottery Redlock"
ETCD, FILES, RESLOCK = "etcd lease + lock", "filelock picker", "reslock"
SCRIPT, PING = "one EVALSHA of SET + DEL", "one raw PING"

WHOLE_MB, HOST, MANY, ONE = 24_064, "host-0", "many", "one"
"""A whole device; the host; the pool for clients of their own, and that of one device for all."""


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
