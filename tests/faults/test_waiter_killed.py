"""Real processes that wait or hold, ended by a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import GRANTING, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

AGENT = """
import sys, time
from agent_sdk import LeaseClient
client = LeaseClient.from_env()
lease = client.acquire("agent", memory_mb=900, ttl_s=2, wait_s=float(sys.argv[1]), host="h1")
client.keep(lease)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def agent(server: Server, pool_name: str, wait_s: float = 0) -> Iterator[subprocess.Popen[str]]:
    """A process that takes the GPU, waiting for it if it must, and holds it."""
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(wait_s)],
        env=environment(REDIS_URL=server.url, GPU_BROKER_POOL=pool_name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def client(server: Server, pool_name: str) -> Iterator[LeaseClient]:
    """A client of a pool with one device of 1000 MiB; no broker has to run."""
    with LeaseClient(Store(server.url), pool=pool_name, hostname="h1") as client:
        said = (("index", 0), ("name", "GPU"), ("model", "m"), ("total_mb", 1000),
                ("system_mb", 0), ("used_mb", 0), ("state", "ok"), ("simulated", 1))  # fmt: skip
        client.report(
            "h1", (("gpu-0", said),), deadline_ms=86_400_000, sampled_ms=0, epoch="",
            safe_mode=False, version="test",
        )  # fmt: skip
        yield client


@pytest.mark.parametrize(("broker", "bound_s"), [(True, 1.1), (False, 3.1)])
def test_holder_killed_hands_on_soon_after_its_expiry(
    server: Server, client: LeaseClient, pool_name: str, broker: bool, bound_s: float
) -> None:
    """L2: with a broker at its tick, without any by the first in the queue itself."""
    settings = GRANTING | {"GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2"}
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool_name}
    with agent(server, pool_name) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if broker:
            with Broker(**settings | here) as replica:
                replica.wait()
                late_s = served_after_kill(client, holder)
        else:
            late_s = served_after_kill(client, holder)
    assert late_s <= 2 * bound_s, f"{late_s:.2f} s after the expiry, promised {bound_s}"


def served_after_kill(client: LeaseClient, holder: subprocess.Popen[str]) -> float:
    """Kill the holder while another waits: seconds from its expiry to the next holder."""
    holder.kill()
    holder.wait()
    (held,) = client.leases()
    assert held.expires_at_ms is not None
    client.release(client.acquire("next", memory_mb=900, wait_s=20))
    return (client.pool().now_ms - held.expires_at_ms) / 1000


def test_interrupted_wait_leaves_no_record(
    server: Server, client: LeaseClient, pool_name: str
) -> None:
    """Ctrl-C in the middle of a blocking acquire: the place is given up before the process ends."""
    held = client.acquire("holder", memory_mb=900)
    with agent(server, pool_name, wait_s=60) as waiter:
        eventually(lambda: client.pool().waiting == 1, 10)
        waiter.send_signal(signal.SIGINT)
        assert waiter.wait(10) != 0
        assert client.queue() == ()
    client.release(held)
    assert client.leases() == ()


@pytest.mark.slow
def test_waiter_killed_delays_the_next_by_one_claim_at_most(
    server: Server, client: LeaseClient, pool_name: str
) -> None:
    """L4: SIGKILL of the first; the offer that it never claims goes on after 10 s."""
    held = client.acquire("holder", memory_mb=900)
    with agent(server, pool_name, wait_s=60) as dead:
        eventually(lambda: client.pool().waiting == 1, 10)
        dead.kill()
        dead.wait()
        client.release(held)
        began = time.monotonic()
        client.release(client.acquire("next", memory_mb=900, wait_s=30))
        assert time.monotonic() - began <= 10 + 3
    assert client.queue() == ()
