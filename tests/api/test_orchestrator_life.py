"""`GPUOrchestratorClient`: forked, dropped, closed, and at the end of its process."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from agent_sdk import BadRequest, GPUOrchestratorClient
from tests.api.brokers import GRANTING, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_sdk.orchestrator import HttpLease

GENERATOR = """
import sys
from agent_sdk import GPUOrchestratorClient
client = GPUOrchestratorClient(sys.argv[1])
def held():
    with client.lease("held", 10, ttl_s=600) as lease:
        while True:
            yield lease
block = held()
print(next(block).on_cpu, flush=True)
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder: Path = tmp_path_factory.mktemp("state")
    with Broker(**GRANTING, GPU_BROKER_STATE_DIR=str(folder)) as broker:
        eventually(lambda: broker.wait().http.get("/gpu/info").json()["gpus"], 20)
        yield broker
        assert broker.allocations() == {}
        assert broker.stop() == 0  # and its store with it


def url(broker: Broker) -> str:
    return f"http://127.0.0.1:{broker.port}"


def keepers() -> int:
    return sum(thread.name == "gpu-lease-keeper" for thread in threading.enumerate())


def test_child_that_leaves_the_block_gives_nothing_back(broker: Broker) -> None:
    """Nor does it renew; its parent holds on."""
    with GPUOrchestratorClient(url(broker)) as client, client.lease("parent", 10) as lease:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                renewed = client.renew(lease)
                lease.__exit__(None, None, None)
                code = int(renewed or client.release(lease) or lease.lost or not lease.is_view)
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert list(broker.allocations()) == [lease.token]
        assert client.renew(lease)


def test_lease_travels_as_a_view(broker: Broker) -> None:
    """Pickled, it is looked at elsewhere, and not held: neither its block nor a call ends it."""
    with GPUOrchestratorClient(url(broker)) as client, client.lease("parent", 10) as lease:
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            told = workers.apply(look, (lease,))
        assert told == (lease.token, True, False, True)
        assert list(broker.allocations()) == [lease.token]
        assert copy.copy(lease).token == lease.token


def look(lease: HttpLease) -> tuple[str, bool, bool, bool]:
    """Return what another process sees of a lease, and whether it refuses to give it back."""
    with lease:
        seen = lease.token, lease.is_view, lease.lost
    try:
        lease.release()
    except BadRequest:
        return *seen, True
    return *seen, False


def test_clients_that_nobody_closes_leave_no_thread(broker: Broker) -> None:
    """One for each job, as a worker makes them."""
    gc.collect()
    before = keepers()
    for _ in range(5):
        with GPUOrchestratorClient(url(broker)).lease("job", 10) as lease:
            assert not lease.on_cpu
    del lease  # it has its client
    eventually(lambda: keepers() <= before, 10)


def test_closed_client_renews_what_it_leases_then(broker: Broker) -> None:
    """It never raises, so it works."""
    client = GPUOrchestratorClient(url(broker))
    client.close()
    with client.lease("after", 10, ttl_s=2) as lease:
        assert not lease.on_cpu
        assert not lease.wait_lost(2.5)


def test_process_whose_generator_never_ends_leaves_nothing(broker: Broker) -> None:
    """It ends, and its lease with it."""
    done = subprocess.run(
        [sys.executable, "-c", GENERATOR, url(broker)],
        env=environment(PYTHONPATH=os.getcwd()),  # noqa: PTH109 - as PYTHONPATH wants it
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
    assert broker.allocations() == {}
