"""Devices that a large request waits for."""

from __future__ import annotations

from tests.lua.waiters import wait
from tests.pools import Pool, device, granted, token

DAY_MS = 86_400_000


LARGE = {"memory_mb": 1000}


def shared(pool: Pool, *names: str, total_mb: int = 1000) -> None:
    """Devices of which a little is held for good, so that nothing large fits."""
    found = tuple(device(name, total_mb, index=n) for n, name in enumerate(names or ("gpu-a",)))
    for number, (name, _) in enumerate(found, 1):  # one by one: it can only be the new one
        pool.report(found[:number], deadline_ms=DAY_MS)
        granted(pool.acquire(token(f"on-{name}"), "little", memory_mb=100, ttl_ms=0))


def live(pool: Pool, seconds: int, *names: str, **ask: object) -> None:
    """Let that many seconds pass, while these waiters poll every three."""
    for _ in range(seconds // 3):
        pool.skew(3000)
        for name in names:
            wait(pool, name, **ask)


def kept(pool: Pool) -> dict[str, str]:
    """Device -> token of the waiter for whom it is kept."""
    rows = {uuid: pool.hash(f"device:{uuid}") for uuid in pool.redis.zrange(pool.keys.fits, 0, -1)}
    return {uuid: row["reserved_for"] for uuid, row in rows.items() if row["reserved_for"]}
