"""A lease in more than one process: adopted by its token, or inherited by a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from agent_sdk import (
    AsyncLeaseClient,
    LeaseClient,
    LeaseLost,
    StillWaiting,
    Store,
    UnknownToken,
)
from tests.api.brokers import environment
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from agent_sdk.testing import TestBroker

WORKER = """
import sys, time
from agent_sdk import LeaseClient, Store
client = LeaseClient(Store(sys.argv[1]), hostname=sys.argv[2])
lease = client.adopt()
client.keep(lease)
print(lease.token, lease.fence, lease.memory_mb, [d.uuid for d in lease.devices], flush=True)
sys.stdin.readline()
print(lease.lost, flush=True)
print(client.release(lease), flush=True)
"""

FORKS = """
import os, sys, time
from agent_sdk import LeaseClient, Store
client = LeaseClient(Store(sys.argv[1]), hostname=sys.argv[2])
with client.lease("parent", memory_mb=100, ttl_s=1) as lease:
    child = os.fork()
    with client.lease("child" if child == 0 else "second", memory_mb=100, ttl_s=1) as own:
        time.sleep(2.5)
        print(lease.lost if child else own.lost, own.lost, flush=True)
    if child == 0:
        client.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(sorted(x.agent for x in client.leases()))
"""


pool = broker_of_the_file(devices=2, memory_mb=1000)
"""Two devices of 1000 MiB on one host."""


def run(code: str, pool: TestBroker, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, pool.url, pool.host],
        env=environment(PYTHONPATH=os.getcwd(), **env),  # noqa: PTH109 - as PYTHONPATH wants it
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def test_adopt_in_another_process_keeps_the_lease(client: LeaseClient, pool: TestBroker) -> None:
    """By the environment of the lease: the same fence and devices, and it is renewed there."""
    lease = client.acquire("parent", memory_mb=300, ttl_s=4)
    with run(WORKER, pool, **lease.env()) as worker:
        token, fence, memory_mb, devices = worker.stdout.readline().split()
        assert (token, int(fence), int(memory_mb)) == (lease.token, lease.fence, 300)
        assert devices == str([d.uuid for d in lease.devices])
        time.sleep(4.5)  # it is not renewed here
        assert [x.token for x in client.leases()] == [lease.token]
        worker.stdin.write("end\n")
        assert worker.stdout.readline().strip() == "False"
        assert worker.stdout.readline().strip() == "True"
    with pytest.raises(LeaseLost) as lost:
        client.renew(lease)
    assert lost.value.code == "released"


def test_adopt_of_a_killed_process_lease_goes_on(client: LeaseClient, pool: TestBroker) -> None:
    """Its holder dies, and whoever has the token takes over before the ttl is over."""
    lease = client.acquire("parent", memory_mb=300, ttl_s=8)
    with run(WORKER, pool, **lease.env()) as worker:
        worker.stdout.readline()
        worker.kill()
    adopted = client.adopt(lease.token)
    assert adopted.trusted_s > 4
    assert adopted.env() == lease.env()


def test_adopt_says_what_became_of_it(client: LeaseClient, pool: TestBroker) -> None:
    """Unknown, over, not granted yet, or on the CPU."""
    with pytest.raises(UnknownToken, match="GPU_LEASE_TOKEN"):
        client.adopt()
    with pytest.raises(UnknownToken):
        client.adopt("0123456789abcdef")
    lease = client.acquire("me", memory_mb=100)
    client.release(lease)
    with pytest.raises(LeaseLost, match="released"):
        client.adopt(lease.token)
    big = [client.acquire("me", exclusive=True, memory_mb=100) for _ in range(2)]
    with pytest.raises(StillWaiting) as waiting:
        client.acquire("me", memory_mb=900, wait_s=0.01, keep_place=True)
    with pytest.raises(StillWaiting):
        client.adopt(waiting.value.token)
    client.release(waiting.value.token)
    cpu = client.acquire("me", memory_mb=900, on_unavailable="cpu")
    assert client.adopt(cpu.token).on_cpu
    assert len(big) == 2


async def test_adopt_async_is_the_same(client: LeaseClient, pool: TestBroker) -> None:
    """The other client."""
    lease = client.acquire("me", memory_mb=100)
    other = AsyncLeaseClient(Store(pool.url), hostname=pool.host)
    adopted = await other.adopt(lease.token)
    assert (adopted.fence, adopted.devices) == (lease.fence, lease.devices)
    assert await other.release(adopted)
    await other.close()


def test_fork_keeps_the_leases_of_each_side(pool: TestBroker) -> None:
    """Parent and child renew their own; the child's end releases nothing of the parent's."""
    with run(FORKS, pool) as forks:
        said, _ = forks.communicate(timeout=20)
    assert said.splitlines() == ["False False", "False False", "['parent']"]
