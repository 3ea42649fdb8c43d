"""The stand-in drivers, and machines that end with their test."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.drivers import build
from tests.hardware.machines import Reported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import Server


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in for NVML that the real nvidia-ml-py loads."""
    return build(tmp_path_factory.mktemp("hardware"))


@pytest.fixture
def reported(server: Server, driver: Path, tmp_path: Path) -> Iterator[Callable[..., Reported]]:
    """Start a real broker on a named machine, under further settings; ready once it answers."""
    with ExitStack() as stack:

        def start(name: str, *, later: bool = False, **settings: str) -> Reported:
            folder = tmp_path / name
            folder.mkdir()
            machine = Reported(name, server, driver, folder, later=later, **settings)
            stack.enter_context(machine)
            machine.broker.wait()
            return machine

        yield start
