"""Pairs of a hundred tasks and of a hundred threads, the SDK's beside redis-py's Lock's."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agent_sdk import AsyncLeaseClient, LeaseClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from agent_sdk import Store

CLIENTS = 100
"""Tasks, or threads, of one process that acquire and release at once."""

TURNS = 2
"""Pairs of each in one round."""

TASKS, THREADS = f"{CLIENTS} tasks", f"{CLIENTS} threads"
SDK, LOCK = "SDK", "redis-py Lock"

Probe = "Callable[[], dict[tuple[str, str], float]]"


@contextmanager
def crowds(store: Store, pool: str, host: str) -> Iterator[Probe]:
    """Make the clients; what is yielded measures each once: µs per pair, by crowd and client."""
    loop = asyncio.new_event_loop()
    own, tasks_redis = AsyncLeaseClient(store, pool=pool, hostname=host), store.connect_async()
    with (
        LeaseClient(store, pool=pool, hostname=host) as sdk,
        store.connect() as redis,
        ThreadPoolExecutor(CLIENTS) as executor,
    ):
        locks = [redis.lock(f"crowd-{n}", timeout=600) for n in range(CLIENTS)]
        own_locks = [tasks_redis.lock(f"tasks-{n}", timeout=600) for n in range(CLIENTS)]

        async def own_pair(_: int) -> None:
            await own.release(await own.acquire("agent", memory_mb=8, ttl_s=600))

        async def own_lock(number: int) -> None:
            await own_locks[number].acquire()
            await own_locks[number].release()

        def pair(_: int) -> None:
            sdk.release(sdk.acquire("agent", memory_mb=8, ttl_s=600))

        def lock(number: int) -> None:
            locks[number].acquire()
            locks[number].release()

        def probe() -> dict[tuple[str, str], float]:
            return {
                (TASKS, SDK): loop.run_until_complete(of_tasks(own_pair)),
                (TASKS, LOCK): loop.run_until_complete(of_tasks(own_lock)),
                (THREADS, SDK): of_threads(executor, pair),
                (THREADS, LOCK): of_threads(executor, lock),
            }

        yield probe
        loop.run_until_complete(own.close())
        loop.run_until_complete(tasks_redis.aclose())  # type: ignore[no-untyped-call] # in redis-py
        loop.close()


async def of_tasks(pair: Callable[[int], Awaitable[None]]) -> float:
    """Return the µs per pair of tasks that all go at once."""

    async def turns(number: int) -> None:
        for _ in range(TURNS):
            await pair(number)

    began = time.perf_counter()
    await asyncio.gather(*map(turns, range(CLIENTS)))
    return per_pair_us(began)


def of_threads(executor: ThreadPoolExecutor, pair: Callable[[int], None]) -> float:
    """Return the same of threads."""
    start = threading.Barrier(CLIENTS + 1)

    def turns(number: int) -> None:
        start.wait()
        for _ in range(TURNS):
            pair(number)

    work: list[Any] = [executor.submit(turns, number) for number in range(CLIENTS)]
    start.wait()
    began = time.perf_counter()
    for each in work:
        each.result()
    return per_pair_us(began)


def per_pair_us(began: float) -> float:
    """Return the µs since then for each pair of the crowd."""
    return (time.perf_counter() - began) / (CLIENTS * TURNS) * 1e6
