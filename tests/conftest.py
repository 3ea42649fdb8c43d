"""Fixtures: one real server per kind and session, a pool of its own for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.pools import Pool
from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A plain Redis."""
    with running() as server:
        yield server


@pytest.fixture
def pool(server: Server) -> Iterator[Pool]:
    """A pool nobody has reported to; its sums and indexes are audited when the test is over."""
    with server.connect() as client:
        pool = Pool(client)
        yield pool
        audit(client, pool.keys)
