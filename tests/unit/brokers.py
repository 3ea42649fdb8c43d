"""Test brokers, each shared by the tests of one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.testing import TestBroker, running_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def broker_of_the_file(**size: int) -> Callable[..., Any]:
    """Return a fixture for a file: one broker, with `running_broker`'s devices and memory."""

    @pytest.fixture(scope="module")
    def pool() -> Iterator[TestBroker]:
        with running_broker(**size) as running:
            yield running

    return pool
