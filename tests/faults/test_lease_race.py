"""Many ask at once for what only one can have."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import TYPE_CHECKING, Any

from agent_sdk import LeaseClient, NoCapacity, Store
from tests.api.brokers import GRANTING, Broker

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

    from tests.servers import Server

SIDE = 20


def ask_over_http(broker: Broker, number: int, barrier: Barrier, said: Queue[str]) -> None:
    """One HTTP client's try."""
    barrier.wait(30)
    how = "refuse" if number % 2 else "cpu"
    answer = broker.lease(min_memory_mb=900, ttl_s=1, on_unavailable=how)
    if answer.status_code == 409:
        said.put(f"{how}: refused")
    else:
        said.put(f"{how}: cpu" if answer.json()["gpu"] == "cpu" else "gpu")


def ask_by_sdk(url: str, pool: str, number: int, barrier: Barrier, said: Queue[str]) -> None:
    """One process's try."""
    how = "refuse" if number % 2 else "cpu"
    client = LeaseClient(Store(url), pool=pool, hostname="h1")
    client.redis.ping()
    barrier.wait(30)
    try:
        lease = client.acquire(
            "agent", memory_mb=900, ttl_s=1, on_unavailable="raise" if number % 2 else "cpu"
        )
    except NoCapacity:
        said.put(f"{how}: refused")
    else:
        said.put(f"{how}: cpu" if lease.on_cpu else "gpu")


def test_lease_20_processes_one_device_exactly_one_gpu_lease(
    server: Server, pool_name: str
) -> None:
    """One of 20 threads and 20 processes gets the GPU; after a crash its end alone frees it."""
    fork = multiprocessing.get_context("fork")
    barrier, said = fork.Barrier(2 * SIDE), fork.Queue()
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool_name, "GPU_BROKER_REPORT_S": "5"}
    with (
        Broker(**GRANTING | here) as broker,
        LeaseClient(Store(server.url), pool=pool_name, hostname="h1") as client,
    ):
        broker.wait()
        common: tuple[Any, ...] = (barrier, said)
        workers: list[Any] = [
            fork.Process(target=ask_by_sdk, args=(server.url, pool_name, n, *common))
            for n in range(SIDE)
        ]
        workers += [
            threading.Thread(target=ask_over_http, args=(broker, n, *common)) for n in range(SIDE)
        ]
        for worker in workers:
            worker.start()
        answers = [said.get(timeout=30) for _ in workers]
        broker.kill()
        for worker in workers:
            worker.join(30)
        assert answers.count("gpu") == 1
        assert set(answers) == {"gpu", "cpu: cpu", "refuse: refused"}
        (held,) = [lease for lease in client.leases() if lease.devices]
        assert held.expires_at_ms is not None
        left_s = (held.expires_at_ms - client.pool().now_ms) / 1000
        assert left_s <= 1
        time.sleep(max(0.0, left_s) + 0.05)
        next_one = client.acquire("next", memory_mb=900, ttl_s=1)
        assert next_one.fence > held.fence
        assert next_one.granted_at_ms - held.expires_at_ms < 2 * 1000
        assert client.release(next_one) is True
