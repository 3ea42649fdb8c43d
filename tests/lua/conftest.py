"""The verbs are tested on Redis, on Redis that never expires a key by itself, and on Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", params=["redis", "redis without active expiry", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server per kind."""
    with running(request.param.partition(" ")[0]) as server:
        if "without" in request.param:
            with server.connect() as client:
                client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        yield server
