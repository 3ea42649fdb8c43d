"""The verbs are tested as scripts and as functions, with and without active expiry, on Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.extent import EVERYTHING
from tests.pools import Pool, device
from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator


KINDS = ["redis", "redis without active expiry, functions", *(["valkey"] if EVERYTHING else [])]


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server per kind."""
    with running(request.param.partition(" ")[0]) as server:
        if "without" in request.param:
            with server.connect() as client:
                client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        yield server


@pytest.fixture
def pool(server: Server, request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool nobody has reported to, whose time only the test moves; audited when it is over.

    Each reply's next_deadline_ms is compared with the deadlines as the call left it.
    """
    with server.connect() as client:
        kind = request.node.callspec.params["server"] if hasattr(request.node, "callspec") else ""
        pool = Pool(client, checked=True, functions="functions" in kind)
        pool.freeze()
        yield pool
        audit(client, pool.keys)


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with one simulated device of 1000 MiB, whose host promises a report every 15 s."""
    pool.report((device("gpu-a", 1000),))
    return pool
