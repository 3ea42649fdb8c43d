"""An agent at its cap."""

from __future__ import annotations

from tests.pools import Pool, device, granted, token

DAY_MS = 86_400_000


ANN = {"agent": "ann", "memory_mb": 500}


def at_cap(pool: Pool) -> None:
    """Ann holds 900 of her 1000 MiB on one device; another is held whole by bob."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("anns"), "ann", memory_mb=900, ttl_ms=0))
    granted(pool.acquire(token("bobs"), "bob", memory_mb=1000, ttl_ms=0))
