"""Waiters of a pool under test, on devices that are full."""

from __future__ import annotations

from typing import Any

from tests.pools import Pool, device, granted, said, token

MINUTE = 60_000


def full(pool: Pool, *devices: str) -> None:
    """Devices of 1000 MiB, each held whole by `holder-<device>`."""
    names = devices or ("gpu-a",)
    found = tuple(device(name, index=n) for n, name in enumerate(names))
    pool.report(found, deadline_ms=24 * 60 * MINUTE)
    for name in names:
        granted(pool.acquire(token(f"holder-{name}"), "holder", memory_mb=1000))


def wait(pool: Pool, name: str, **ask: object) -> list[object]:
    """Wait in the queue, a millisecond later than the waiter before, or poll."""
    asked = {"agent": name, "wait_ms": MINUTE} | ask
    if not pool.redis.exists(pool.keys.record(token(name))):
        pool.skew(1)
    return said(pool.acquire(token(name), **asked))  # type: ignore[arg-type] # a test's own options


def quiet(pool: Pool) -> None:
    """No request waits, and no key says otherwise."""
    kinds = {key.removeprefix(pool.keys.base + ":").split(":")[0] for key in pool.stored()}
    assert not kinds & {"queue", "queues", "capped", "worklist"}
    assert pool.hash("pool")["waiting"] == "0"


HOLDER = token("holder-gpu-a")


def inbox(pool: Pool, client: str = "client") -> list[str]:
    """The hints that a process was left."""
    found: Any = pool.redis.lrange(f"{pool.keys.base}:inbox:{client}", 0, -1)
    return list(found)


def state(pool: Pool, name: str) -> str:
    """Return the state of a token's record."""
    return pool.hash(f"record:{token(name)}").get("state", "")
