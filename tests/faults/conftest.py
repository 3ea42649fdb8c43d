"""Fixtures that the fault tests share."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pools import Pool
    from tests.servers import Server

names = (f"f{n}-{uuid4().hex[:8]}" for n in itertools.count())


@pytest.fixture
def pool_name() -> str:
    """A pool that nobody has used."""
    return next(names)


@pytest.fixture
def connect(server: Server, pool: Pool) -> Iterator[Callable[..., LeaseClient]]:
    """Makes clients of `pool` on host h1; at a URL of the test's choice, say a proxy's."""
    clients = []

    def make(url: str = server.url, timeout_s: float = 1.0) -> LeaseClient:
        store = Store(url, timeout_s)
        client = LeaseClient(store, pool=pool.keys.pool_name, hostname="h1")
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
