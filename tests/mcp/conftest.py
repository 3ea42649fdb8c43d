"""A pool of two GPUs for the MCP server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_sdk.testing import running_broker
from tests.api.brokers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker


@pytest.fixture(scope="module")
def started() -> Iterator[TestBroker]:
    with running_broker(devices=2, memory_mb=1000) as pool:
        yield pool


@pytest.fixture
def gpus(started: TestBroker) -> Iterator[TestBroker]:
    """A pool of two GPUs; afterwards nothing is held, and no request waits."""
    yield started

    def nothing_left() -> bool:
        started.client.reap()  # what a broker does each second
        return not (started.client.leases() or started.client.queue())

    eventually(nothing_left, 20)
