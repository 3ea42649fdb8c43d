"""The pytest plugin for users of the SDK: a pool that the code under test finds by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import agent_sdk
from agent_sdk import LeaseClient
from agent_sdk.testing import running_broker
from tests.api.brokers import BIN
from tests.stores import until

if TYPE_CHECKING:
    from tests.servers import Server

ROOT = Path(__file__).parents[2]

PLUGIN = ("-p", "pytest_gpu_broker")
"""Options for a checkout that was installed before there was an entry point."""

USES = """
import subprocess, sys, os
import broker  # a package: no fixture of the plugin has its name
import pytest
from agent_sdk import GPUOrchestratorClient, LeaseClient

CHILD = "from agent_sdk import LeaseClient as C; C.from_env().acquire('child', memory_mb=1)"


@pytest.mark.parametrize("n", range(4))
def test_code_under_test_leases_here(gpu_broker, n):
    lease = LeaseClient.from_env().acquire("code-under-test", memory_mb=20000)
    assert lease.devices[0].uuid.startswith("SIM-")
    subprocess.run([sys.executable, "-c", CHILD], check=True)
    assert {x.agent for x in gpu_broker.client.leases()} == {"code-under-test", "child"}
    assert GPUOrchestratorClient().lease("over-http").on_cpu
    assert "GPU_LEASE_TOKEN" not in os.environ


def test_environment_is_the_developers_again():
    assert os.environ["REDIS_URL"].startswith("redis://")
    assert os.environ["GPU_LEASE_TOKEN"] == "the-developers-own"
    assert broker.__version__
"""
"""Tests of a user's project; the environment names a pool that is in use."""


def project(folder: Path, server: Server, *args: str, **more: str) -> str:
    """Run such a project's tests; what pytest says."""
    (folder / "test_uses.py").write_text(USES)
    env = {
        "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(ROOT),
        "REDIS_URL": server.url, "GPU_BROKER_POOL": "developers", "GPU_BROKER_HOSTNAME": "desk",
        "GPU_LEASE_TOKEN": "the-developers-own", "GPU_ORCHESTRATOR_URL": "http://gpu:8014",
    } | more  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "pytest_gpu_broker",
        *args,
        "test_uses.py",
    ]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True,
                          timeout=110, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("args", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_code_under_test_finds_the_tests_pool(
    server: Server, tmp_path: Path, args: tuple[str, ...]
) -> None:
    """And never the one that the developer's environment names: nothing is written there."""
    assert "5 passed" in project(tmp_path, server, *args)
    with server.connect() as redis:
        assert not redis.keys("gpu:{developers}*")


def test_plugin_works_under_a_long_tmpdir(server: Server, tmp_path: Path) -> None:
    """A path in which no unix socket has room, as CI systems make them."""
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    assert "5 passed" in project(tmp_path, server, TMPDIR=str(folder))


def test_own_fixture_called_broker_is_not_taken(server: Server, tmp_path: Path) -> None:
    """A project's own, and pytest's listing names ours with what it is."""
    (tmp_path / "test_own.py").write_text("def test_it(broker): pass\n")
    command = [sys.executable, "-m", "pytest", *PLUGIN, "test_own.py"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=110, check=False)  # fmt: skip
    assert "fixture 'broker' not found" in done.stdout
    assert "gpu_broker" in done.stdout


def test_plugin_costs_nothing_until_it_is_used() -> None:
    """pytest imports it at each start of every project that has it."""
    code = "import sys, pytest_gpu_broker; print('agent_sdk' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert said == "False\n"


def test_environment_of_a_pool_ends_with_its_block() -> None:
    """Nested ones name the inner pool; a failure leaves nothing behind."""
    before = dict(os.environ)
    with running_broker(devices=1) as one, one.environment(), running_broker() as two:
        with two.environment():
            assert LeaseClient.from_env().store.url == two.url
        assert os.environ["REDIS_URL"] == one.url
        with pytest.raises(KeyError), two.environment():
            raise KeyError
        assert os.environ["REDIS_URL"] == one.url
    assert dict(os.environ) == before


def test_clients_of_the_process_end_with_the_environment() -> None:
    """`agent_sdk.lease` leaves no thread behind that would look after a pool that is gone."""
    with running_broker(devices=1) as one:
        before = set(threading.enumerate())
        with one.environment(), agent_sdk.lease("test", memory_mb=100):
            assert set(threading.enumerate()) > before
        until(lambda: set(threading.enumerate()) <= before)


TWO_LOOPS = """
import asyncio, sys
from agent_sdk import AsyncLeaseClient, Store

client = AsyncLeaseClient(Store(sys.argv[1]), hostname=sys.argv[2])

async def used():
    await client.release(await client.acquire("a", memory_mb=1))

asyncio.run(used())
asyncio.run(used())
asyncio.run(client.close())
"""


def test_async_client_is_closed_after_loops_of_other_tests() -> None:
    """pytest-asyncio gives each test a loop; a client of the session's outlives them.

    In a process of its own: asyncio warns of what a closed loop leaves open.
    """
    with running_broker(devices=1) as pool:
        command = [sys.executable, "-c", TWO_LOOPS, pool.url, pool.host]
        subprocess.run(command, check=True, timeout=60)
