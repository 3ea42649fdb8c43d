"""Drivers that are not there: the real clients load or start a stand-in for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from broker.devices.smi.source import SmiSource
from tests.audit import audit
from tests.drivers import Machine, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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

    def source(body: str, timeout_s: float = 5.0) -> SmiSource:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        return SmiSource("box", str(program), timeout_s=timeout_s)

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
