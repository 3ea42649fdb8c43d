"""Arguments as callers pass them: numpy's numbers, members of enums, and no numbers at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agent_sdk import AsyncLeaseClient, BadRequest, GPUOrchestratorClient, LeaseClient, Store
from tests.api.brokers import GRANTING, Broker
from tests.pools import device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pools import Pool
    from tests.servers import Server


class Name(str, enum.Enum):  # noqa: UP042 - its str() is its member's name: that is the point
    ANALYST = "analyst"
    HOST = "h1"
    PACK = "pack"


class Size(enum.IntEnum):
    ONE = 1
    BIG = 1024


class OwnInt(int):
    """An int of its own, as some libraries have one."""


RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("analyst", {"memory_mb": np.int64(1024)}),
    ("analyst", {"memory_mb": Size.BIG}),
    ("analyst", {"memory_mb": OwnInt(1024)}),
    ("analyst", {"memory_mb": 1024, "devices": Size.ONE}),
    ("analyst", {"memory_mb": 1024, "devices": np.uint8(1), "priority": np.int8(3)}),
    ("analyst", {"memory_mb": 1024, "ttl_s": np.float32(30), "wait_s": Size.ONE}),
    ("analyst", {"memory_mb": 1024, "ttl_s": Decimal("2.5"), "max_hold_s": Fraction(7, 2)}),
    ("analyst", {"memory_mb": 1024, "exclusive": np.False_}),
    (Name.ANALYST, {"memory_mb": 1024, "host": Name.HOST, "placement": Name.PACK}),
]

WRONG: list[tuple[Any, dict[str, Any]]] = [
    ("analyst", {"memory_mb": 1024.0}),
    ("analyst", {"memory_mb": np.float64(1024)}),
    ("analyst", {"memory_mb": "1024"}),
    ("analyst", {"memory_mb": True}),
    ("analyst", {"memory_mb": np.True_}),
    ("analyst", {"memory_mb": None}),
    ("analyst", {"memory_mb": np.array([1, 2])}),
    ("analyst", {"ttl_s": dt.timedelta(seconds=30)}),
    ("analyst", {"ttl_s": "30"}),
    ("analyst", {"ttl_s": np.array([1.0, 2.0])}),
    ("analyst", {"ttl_s": 10**400}),
    ("analyst", {"exclusive": "false"}),
    ("analyst", {"placement": "best"}),
    ("analyst", {"placement": 1}),
    ("analyst", {"on_unavailable": "refuse"}),
    (b"analyst", {}),
    (None, {}),
]


@pytest.fixture
def client(server: Server, pool: Pool) -> Iterator[LeaseClient]:
    """A client of a pool with one device."""
    pool.report((device("D0", total_mb=24576),), deadline_ms=86_400_000)
    with LeaseClient(Store(server.url), pool=pool.keys.pool_name, hostname="h1") as client:
        yield client


def acquired(client: LeaseClient, who: str, agent: Any, ask: dict[str, Any]) -> Any:
    """A lease by the blocking client, or by asyncio's of the same pool."""

    async def asynchronous() -> Any:
        pool = client.keys.pool_name
        async with AsyncLeaseClient(client.store, pool=pool, hostname="h1") as other:
            return await other.acquire(agent, **ask)

    return asyncio.run(asynchronous()) if who == "asyncio" else client.acquire(agent, **ask)


@pytest.mark.parametrize("who", ["blocking", "asyncio"])
@pytest.mark.parametrize(("agent", "ask"), RIGHT)
def test_number_of_another_kind_counts_as_its_number(
    client: LeaseClient, who: str, agent: str, ask: dict[str, Any]
) -> None:
    """And a member of an enum as its value, in the store and in what the lease says."""
    lease = acquired(client, who, agent, ask)
    assert (type(lease.agent), lease.agent, lease.memory_mb) == (str, "analyst", 1024)
    found = client.lookup(lease.token)
    assert (found.agent, found.memory_mb) == ("analyst", 1024)
    lease_again = acquired(client, who, agent, {**ask, "token": lease.token})
    assert lease_again.fence == lease.fence  # the same request, word for word
    client.renew(lease.token, np.float64(5))
    client.renew(lease.token, 5, fence=np.int64(lease.fence))
    assert client.release(lease.token)


@pytest.mark.parametrize("who", ["blocking", "asyncio"])
@pytest.mark.parametrize(("agent", "ask"), WRONG)
def test_what_is_none_is_a_bad_request(
    client: LeaseClient, who: str, agent: Any, ask: dict[str, Any]
) -> None:
    """In words, before anything is sent; also where a caller would fall back to the CPU."""
    ask = {"on_unavailable": "cpu", **ask}
    with pytest.raises(BadRequest):
        acquired(client, who, agent, ask)
    assert client.leases() == ()


def test_operators_numbers_may_be_of_another_kind(client: LeaseClient) -> None:
    """A policy too."""
    client.set_policy(default_memory_mb=np.int32(2048), max_leases_per_agent=Size.ONE)
    assert client.pool().default_memory_mb == 2048


def test_numbers_of_another_kind_go_over_http(server: Server) -> None:
    """They are no form of JSON's, and the client must not fall back to the CPU for that."""
    with Broker(REDIS_URL=server.url, **GRANTING) as broker:
        broker.wait()
        with GPUOrchestratorClient(f"http://127.0.0.1:{broker.port}") as client:
            for size, ttl_s in ((np.int64(100), np.float32(30)), (Size.ONE, Decimal(30))):
                lease = client.lease("a", size, ttl_s=ttl_s, exclusive=np.False_)
                assert not lease.on_cpu, lease.reason
                assert client.release(lease)
