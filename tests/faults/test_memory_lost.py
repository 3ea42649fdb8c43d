"""Redis comes back without its last writes, or without any: who held a lease goes on holding it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from agent_sdk import BrokerUnavailable, LeaseClient, Store
from agent_sdk.errors import LeaseError
from tests.api.brokers import eventually
from tests.audit import audit
from tests.pools import device
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

HEARD_S = 6.0
"""Within which a holder brings its lease back: it looks every 3 s, and may have to connect anew."""

CLOSED_S = 10.0


@pytest.fixture
def server() -> Iterator[Server]:
    """A Redis that writes to disk when it is told to, and at no other time."""
    with running("redis") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[LeaseClient]:
    """A client with a host that has one device."""
    with LeaseClient(Store(server.url), hostname="h1", deadline_s=10) as client:
        report(client)
        yield client


def report(client: LeaseClient, epoch: str = "") -> str:
    """What the host says; the pool's epoch."""
    name, fields = device("gpu-a", 1000)
    moment = client.report(
        "h1", ((name, tuple(fields.items())),), deadline_ms=60000, sampled_ms=0, epoch=epoch,
        safe_mode=False, version="test",
    )  # fmt: skip
    return moment.epoch


def check_closed(client: LeaseClient) -> None:
    """Nothing is granted, and the answer says why."""
    with pytest.raises(BrokerUnavailable) as refusal:
        client.acquire("late", memory_mb=10)
    assert refusal.value.code == "closed"


def known(client: LeaseClient, token: str) -> bool:
    """Whether the ledger has the lease."""
    with suppress(LeaseError):
        return client.lookup(token) is not None
    return False


def test_a_grant_that_a_crash_lost_is_brought_back_by_its_holder(
    server: Server, client: LeaseClient
) -> None:
    """The crash lost the grant; nobody else gets its room, and its holder never lost it."""
    client.redis.save()
    with client.lease("holder", memory_mb=900, ttl_s=30) as lease:
        time.sleep(0.5)
        server.kill()
        server.start()
        assert client.lookup(lease.token) is None
        began = time.monotonic()
        check_closed(client)
        eventually(lambda: known(client, lease.token), HEARD_S)
        late = client.acquire("late", memory_mb=50, wait_s=2 * CLOSED_S)
        assert CLOSED_S - 1 < time.monotonic() - began < CLOSED_S + 4
        assert not lease.lost
        assert late.fence > lease.fence
        assert [held.token for held in client.leases()] == [lease.token, late.token]
    audit(client.redis, client.keys)


def test_after_flushall_holders_come_first(server: Server, client: LeaseClient) -> None:
    """Everything is gone; the host remembers that there was a pool, so it is closed at first."""
    epoch = client.pool().epoch
    with client.lease("holder", memory_mb=900, ttl_s=30) as lease:
        time.sleep(0.5)
        with server.connect() as redis:
            redis.flushall()
        assert report(client, epoch) != epoch
        check_closed(client)
        eventually(lambda: known(client, lease.token), HEARD_S)
        assert not lease.lost
        check_closed(client)
        audit(client.redis, client.keys)


def test_a_host_that_knew_of_no_pool_is_corrected_by_the_first_holder(
    server: Server, client: LeaseClient
) -> None:
    """Store and reporter were both made anew: the pool is open until a holder's renewal."""
    with client.lease("holder", memory_mb=900, ttl_s=30) as lease:
        time.sleep(0.5)
        with server.connect() as redis:
            redis.flushall()
        report(client)
        eventually(lambda: known(client, lease.token), HEARD_S)
        check_closed(client)
        assert not lease.lost
