"""Fitness of a server, asked by several tasks at a time."""

from __future__ import annotations

import asyncio

from agent_sdk import AsyncLeaseClient, Store
from broker.maintenance.store_check import problem_of
from tests.servers import running


async def test_asked_at_once_by_several_tasks_all_are_told_the_same() -> None:
    """The tick and `/ready` ask at any moments, and neither closes the other's connection."""
    with running("redis", "--maxmemory-policy", "allkeys-lru") as server:
        async with AsyncLeaseClient(Store(server.url)) as client:

            async def ask(after_s: float) -> set[str | None]:
                said = set()
                for _ in range(200):
                    said.add(await problem_of(client.redis))
                    await asyncio.sleep(after_s)
                return said

            told = await asyncio.gather(*(ask(ms / 1000) for ms in (0, 0, 1, 2)))
    [sentence] = set.union(*told)
    assert sentence is not None
    assert sentence.startswith("maxmemory-policy is allkeys-lru")
