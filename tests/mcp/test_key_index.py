"""Lists over HTTP: what a key has is found without a look at the rest of the pool."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import AsyncLeaseClient, BrokerUnavailable, LeaseClient, Store
from broker.mcp import key_index
from broker.mcp.key_index import MOST, KeyIndex
from tests.api.brokers import Broker
from tests.api.keys import new_key
from tests.mcp.clients import over_http, pool_of, said
from tests.reports import register
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.servers import Server

OTHERS = 150


@dataclass
class Listed:
    """A broker with a key, and its pool."""

    broker: Broker
    key: str
    pool: LeaseClient


@pytest.fixture
def here(own: Server, tmp_path: Path) -> Iterator[Listed]:
    """A pool in which others hold leases, of a host whose reporter says nothing meanwhile."""
    name = f"p{uuid4().hex[:8]}"
    key = new_key(tmp_path / "keys", "ann", "agent")
    settings = {
        "REDIS_URL": own.url,
        "SAFE_MODE": "false",
        "GPU_BROKER_POOL": name,
        "GPU_BROKER_DEVICES": "none",
        "GPU_BROKER_KEYS_FILE": str(tmp_path / "keys"),
    }
    with Broker(**settings) as broker, pool_of(own.url, name) as pool:
        register(pool)
        broker.wait()
        for number in range(OTHERS):
            pool.acquire(f"other-{number}", memory_mb=1, ttl_s=600)
        pool.reminds = False
        yield Listed(broker, key, pool)


@pytest.fixture
async def client(own: Server) -> AsyncIterator[AsyncLeaseClient]:
    async with AsyncLeaseClient(Store(own.url), pool=f"p{uuid4().hex[:8]}") as client:
        yield client


@contextmanager
def monitored(server: Server) -> Iterator[list[str]]:
    """The commands during a block, as MONITOR tells them."""
    told: list[str] = []
    with server.connect() as redis, redis.monitor() as monitor:  # type: ignore[no-untyped-call] # redis-py does not type it

        def listen() -> None:
            while told[-1:] != ["ECHO over"]:
                told.append(str(monitor.next_command()["command"]))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield told
        with server.connect() as other:
            other.echo("over")
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("tool", ["gpu_leases", "gpu_usage"])
async def test_list_reads_no_lease_of_others(here: Listed, own: Server, tool: str) -> None:
    """No command names one of the 150 leases of others."""
    async with over_http(here.broker.port, here.key) as client:
        mine = (await said(client, "gpu_acquire", memory_mb=600))["ticket"]
        waits = (await said(client, "gpu_acquire", memory_mb=900, wait_s=0.1))["ticket"]
        with monitored(own) as commands:
            rows = (await said(client, tool))["leases"]
        tokens = [mine, waits] if tool == "gpu_leases" else [mine]
        assert [row["token"] for row in rows] == tokens
        assert any(mine in command for command in commands)
        others = {lease.token for lease in here.pool.leases()} - {mine}
        assert len(others) == OTHERS
        assert not [x for x in commands if any(token in x for token in others)]


async def test_what_is_over_is_no_longer_listed(here: Listed) -> None:
    """Nor kept: a released lease at once, one that an operator ended when it is listed."""
    key = here.pool.keys.mcp("ann")
    async with over_http(here.broker.port, here.key) as client:
        one, two, three = [
            (await said(client, "gpu_acquire", memory_mb=1))["ticket"] for _ in range(3)
        ]
        assert set(here.pool.redis.zrange(key, 0, -1)) == {one, two, three}
        await said(client, "gpu_release", token=one)
        assert set(here.pool.redis.zrange(key, 0, -1)) == {two, three}
        await asyncio.to_thread(here.pool.release, two)
        assert [x["token"] for x in (await said(client, "gpu_leases"))["leases"]] == [three]
        assert here.pool.redis.zrange(key, 0, -1) == [three]
        assert 0 < here.pool.redis.pttl(key) <= key_index.KEPT_MS


async def test_named_last_stay(client: AsyncLeaseClient) -> None:
    """The index of a key is bounded, whatever its agent leaves behind."""
    index = KeyIndex(client)
    for number in range(MOST + 5):
        await index.add("ann", f"{number:032}")
        await asyncio.sleep(0.001)  # a time of its own
    assert list(await index.tokens("ann")) == [f"{n:032}" for n in range(5, MOST + 5)]
    assert await client.redis.zcard(client.keys.mcp("ann")) == MOST


async def test_unknown_token_is_young_for_a_minute(
    client: AsyncLeaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list beside an acquire must not forget what is about to be granted."""
    index = KeyIndex(client)
    await index.add("ann", "a" * 32)
    assert await index.tokens("ann") == {"a" * 32: True}
    later_ms = key_index._now_ms() + key_index.YOUNG_MS + 1
    monkeypatch.setattr(key_index, "_now_ms", lambda: later_ms)
    assert await index.tokens("ann") == {"a" * 32: False}
    await index.drop("ann", ["a" * 32])
    assert await index.tokens("ann") == {}


async def test_store_that_is_away_fails_lists_alone() -> None:
    """A lease is worth more than its place in a list."""
    url = f"redis://127.0.0.1:{free_port()}"
    async with AsyncLeaseClient(Store(url), hostname="h1") as client:
        index = KeyIndex(client)
        await index.add("ann", "a" * 32)
        await index.drop("ann", ["a" * 32])
        with pytest.raises(BrokerUnavailable):
            await index.tokens("ann")
