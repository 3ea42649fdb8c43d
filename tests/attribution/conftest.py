"""Fixtures that tests of a host share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attribution.machine import Machine
from tests.audit import audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


@pytest.fixture
def machine(server: Server, tmp_path: Path) -> Iterator[Machine]:
    """One host."""
    machine = Machine(server, tmp_path)
    with machine.client:
        yield machine
        audit(machine.client.redis, machine.client.keys)
