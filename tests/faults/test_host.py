"""`gpu-broker host`, a real process: Redis comes and goes, it is killed, it stops in good order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, NoCapacity, Store
from tests.api.brokers import GRANTING, PROGRAM, Broker, eventually
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

DEADLINE_S = 0.9
"""Three reports of 0.3 s."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A Redis of its own, that can be killed."""
    with running("redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[LeaseClient]:
    """An agent on the host, in a pool of its own."""
    pool = f"host-{uuid4().hex[:8]}"
    with LeaseClient(Store(server.url), pool=pool, hostname="h1", deadline_s=10) as client:
        yield client


@contextmanager
def reporter(
    client: LeaseClient, *options: str, report_s: str = "0.3"
) -> Iterator[subprocess.Popen[str]]:
    """A host of one simulated GPU that reports every 0.3 s."""
    environ = os.environ | {
        "REDIS_URL": client.store.url, "GPU_BROKER_POOL": client.keys.pool_name,
        "GPU_BROKER_HOSTNAME": "h1", "GPU_BROKER_DEVICES": "sim:1x1000",
        "GPU_BROKER_REPORT_S": report_s, "SAFE_MODE": "false",
    }  # fmt: skip
    process = subprocess.Popen(
        [Path(sys.executable).parent / "gpu-broker", "host", *options], env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        eventually(lambda: state(client) == "ok", 15)
        yield process
    finally:
        process.kill()
        process.communicate()


def state(client: LeaseClient) -> str:
    """Return the device's state; nothing while there is none."""
    return next((device.state for device in client.devices()), "")


def ended(process: subprocess.Popen[str], within_s: float) -> str:
    """Return what it printed, once it has ended in good order."""
    out, _ = process.communicate(timeout=within_s)
    assert process.returncode == 0, out
    return out


def test_host_that_is_killed_leaves_its_leases_alone(client: LeaseClient) -> None:
    """Away after three reports, back with the next process; the lease runs on all the while."""
    with reporter(client) as process:
        lease = client.acquire("agent", memory_mb=900, ttl_s=30)
        process.send_signal(signal.SIGKILL)
        eventually(lambda: client.reap() and state(client) == "away", DEADLINE_S + 3)
        with pytest.raises(NoCapacity):
            client.acquire("other", memory_mb=50)
    with reporter(client):
        assert client.renew(lease).remaining_ms > 0
        assert [held.token for held in client.leases()] == [lease.token]
        assert client.devices()[0].leased_mb == 900


def test_host_goes_on_reporting_after_redis_was_away(server: Server, client: LeaseClient) -> None:
    """Nobody restarts it."""
    with reporter(client) as process:
        server.kill()
        time.sleep(DEADLINE_S + 1)
        server.start()
        before = client.hosts()[0].reported_ms
        eventually(lambda: client.hosts()[0].reported_ms > before and state(client) == "ok", 10)
        process.terminate()
        ended(process, 10)


def test_host_that_stops_leaves_at_once(client: LeaseClient) -> None:
    """Without a flag nothing is withdrawn: a restart of the reporter costs nobody anything."""
    with reporter(client) as process:
        lease = client.acquire("agent", memory_mb=900)
        process.terminate()
        ended(process, 5)
        assert state(client) == "ok"
        client.release(lease)


def test_host_that_drains_waits_for_its_leases(client: LeaseClient) -> None:
    """It offers nothing, goes on reporting, and ends with the last lease; its return undoes it."""
    with reporter(client, "--drain-on-stop", "60") as process:
        lease = client.acquire("agent", memory_mb=500)
        process.terminate()
        eventually(lambda: state(client) == "stopping", 5)
        with pytest.raises(NoCapacity):
            client.acquire("other", memory_mb=50)
        time.sleep(DEADLINE_S + 0.3)
        assert state(client) == "stopping"
        assert client.renew(lease).remaining_ms > 0
        client.release(lease)
        assert "stopped with 0 leases left on h1" in ended(process, 5)
    with reporter(client):
        client.release(client.acquire("agent", memory_mb=500))


def test_host_drains_at_once_and_through_an_outage(server: Server, client: LeaseClient) -> None:
    """It does not wait for its next report, and a Redis that is away does not end its patience."""
    with reporter(client, "--drain-on-stop", "60", report_s="30") as process:
        lease = client.acquire("agent", memory_mb=500, ttl_s=60)
        process.terminate()
        eventually(lambda: state(client) == "stopping", 5)
        server.kill()
        time.sleep(1)
        server.start()
        assert process.poll() is None
        client.release(lease)
        ended(process, 15)


def test_host_that_drains_is_ended_by_a_second_signal(client: LeaseClient) -> None:
    """Whoever asks twice means it."""
    with reporter(client, "--drain-on-stop", "60") as process:
        lease = client.acquire("agent", memory_mb=500)
        process.terminate()
        eventually(lambda: state(client) == "stopping", 5)
        process.terminate()
        ended(process, 5)
        client.release(lease)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_stops_in_good_order_with_its_terminal(server: Server, workers: str) -> None:
    """SIGHUP is as SIGTERM: calls are answered, and the process ends by itself."""
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"hangup-{workers}"}
    with Broker(**settings, GPU_BROKER_WORKERS=workers) as broker:
        broker.wait()
        broker.granted(min_memory_mb=1000)
        with ThreadPoolExecutor() as threads:
            waits = threads.submit(broker.lease, min_memory_mb=1000, wait_s=30)
            eventually(lambda: broker.http.get("/queue").json()["waiting"], 10)
            broker.process.send_signal(signal.SIGHUP)
            assert waits.result(10).status_code in {200, 202, 503}
        assert broker.process.wait(20) == 0


def test_serve_goes_on_after_its_terminal_under_nohup(server: Server) -> None:
    """It has said that it wants to."""
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "nohup"}
    with Broker(program=("nohup", PROGRAM), **settings) as broker:
        broker.wait()
        broker.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert broker.process.poll() is None
        broker.granted(min_memory_mb=100)


def test_host_drains_with_its_terminal_too(client: LeaseClient) -> None:
    """SIGHUP is as SIGTERM."""
    with reporter(client, "--drain-on-stop", "60") as process:
        lease = client.acquire("agent", memory_mb=500)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: state(client) == "stopping", 5)
        client.release(lease)
        assert "stopped with 0 leases left on h1" in ended(process, 5)
