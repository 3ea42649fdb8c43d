"""A pool for the tests of those who use the SDK: a real store, simulated devices.

```python
from agent_sdk.testing import broker  # a pytest fixture; import it into conftest.py


def test_analyst_gets_a_gpu(broker):
    with broker.client.lease("analyst", memory_mb=8192) as lease:
        assert lease.memory_mb == 8192
```
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk.client import LeaseClient
from agent_sdk.embedded import EmbeddedStore
from agent_sdk.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "test-host"

DEADLINE_MS = 86_400_000
"""No reporter follows: the devices must last as long as any test does."""


@dataclass(frozen=True, slots=True)
class TestBroker:
    """A running pool.

    Attributes:
        url: for clients in other processes; also set their GPU_BROKER_HOSTNAME to `host`.
        host: the name of the machine that has the devices.
        client: a client on that machine.
    """

    __test__ = False  # not a test class, whatever its name says to pytest

    url: str
    host: str
    client: LeaseClient


@contextmanager
def running_broker(devices: int = 2, memory_mb: int = 24576) -> Iterator[TestBroker]:
    """A pool of its own for the length of a block: `devices` GPUs of `memory_mb` MiB each.

    Raises:
        EmbeddedError: there is no server to start; the message names both ways to get one.
    """
    folder = Path(tempfile.mkdtemp(prefix="gpu-broker-"))
    store = EmbeddedStore(folder)
    try:
        store.start_or_join()
        with LeaseClient(Store(store.url), hostname=HOST) as client:
            _report(client, devices, memory_mb)
            yield TestBroker(store.url, HOST, client)
    finally:
        store.leave()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def broker() -> Iterator[TestBroker]:
    """Two simulated GPUs of 24 GiB on a store of their own."""
    with running_broker() as running:
        yield running


def _report(client: LeaseClient, devices: int, memory_mb: int) -> None:
    said = (
        ("name", f"Simulated GPU {memory_mb} MiB"),
        ("model", f"Simulated GPU {memory_mb} MiB"),
        ("total_mb", memory_mb),
        ("reserve_mb", 0),
        ("used_mb", 0),
        ("state", "ok"),
        ("simulated", 1),
    )
    client.report(
        HOST,
        tuple((f"SIM-{HOST}-{n}", (("index", n), *said)) for n in range(devices)),
        deadline_ms=DEADLINE_MS,
        sampled_ms=0,
        epoch="",
        safe_mode=False,
        version="testing",
    )
