"""Pool for tests of programs that use the SDK: a real store, simulated devices.

pytest has the fixture `gpu_broker` of the plugin `pytest_gpu_broker`. Elsewhere, or with other
devices:

```python
with running_broker(devices=4, memory_mb=81920) as pool, pool.environment():
    with LeaseClient.from_env().lease("analyst", memory_mb=8192) as lease:
        assert lease.memory_mb == 8192
```
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import shared
from agent_sdk.client import LeaseClient
from agent_sdk.store.embedded import EmbeddedStore
from agent_sdk.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "test-host"

OURS = ("GPU_BROKER_", "GPU_ORCHESTRATOR_", "GPU_LEASE_")
"""Beginnings of variables that would lead elsewhere."""

LONGEST_FOLDER = 80
"""Most bytes of a folder's path that leave room for a unix socket."""

DEADLINE_MS = 86_400_000
"""Milliseconds for which the devices last: no reporter follows, and any test must fit in."""


@dataclass(frozen=True, slots=True)
class TestBroker:
    """Running pool.

    Attributes:
        url: the URL for clients in other processes; also set their GPU_BROKER_HOSTNAME to `host`.
        host: the name of the machine with the devices.
        client: a client on that machine.
    """

    __test__ = False  # not a test class, whatever its name says to pytest

    url: str
    host: str
    client: LeaseClient

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Make the environment name this pool, for `from_env`, the CLI and child processes.

        The HTTP client finds no broker, and so no GPU. Earlier objects, such as a client made at
        the import of a module, keep their pool. The clients of `agent_sdk.lease` end with it.
        """
        before = dict(os.environ)
        for name in before:
            if name.startswith(OURS) or name in {"REDIS_URL", "SAFE_MODE"}:
                del os.environ[name]
        # Bound without a listener: connections are refused at once.
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            os.environ |= {
                "REDIS_URL": self.url,
                "GPU_BROKER_HOSTNAME": self.host,
                "GPU_ORCHESTRATOR_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}",
            }
            try:
                yield
            finally:
                os.environ.clear()
                os.environ.update(before)
                shared.forget()


@contextmanager
def running_broker(devices: int = 2, memory_mb: int = 24576) -> Iterator[TestBroker]:
    """Run a pool for the length of a block: `devices` GPUs of `memory_mb` MiB each.

    Raises:
        EmbeddedError: there is no server to start; the message names both ways to get one.
    """
    folder = _folder()
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
    """Provide the fixture `gpu_broker` under the name that a conftest.py imports."""
    with running_broker() as running, running.environment():
        yield running


def _folder() -> Path:
    """Make a new folder, below /tmp where TMPDIR is too long for a socket's path."""
    short = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER
    folder = None if short else "/tmp"  # noqa: S108 - mkdtemp makes one in it, for us alone
    return Path(tempfile.mkdtemp(prefix="gpu-broker-", dir=folder))


def _report(client: LeaseClient, devices: int, memory_mb: int) -> None:
    said = (
        ("name", f"Simulated GPU {memory_mb} MiB"),
        ("model", f"Simulated GPU {memory_mb} MiB"),
        ("total_mb", memory_mb),
        ("system_mb", 0),
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
