"""Verbs as functions or as scripts: the SDK takes what the server has, and loses nothing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError

from agent_sdk import AsyncLeaseClient, LeaseClient, Store
from agent_sdk.errors import BadRequest, LeaseLost
from agent_sdk.keys import Keys
from agent_sdk.protocol.messages import Call, Renewal
from agent_sdk.renewal.redis_transport import RedisTransport
from agent_sdk.scripts import dispatch
from agent_sdk.scripts import library as functions
from agent_sdk.scripts.dispatch import Dispatch
from agent_sdk.scripts.library import own_library
from broker.maintenance.function_loader import Loading
from tests.audit import audit
from tests.pools import Pool, device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.servers import Server

REAP = Call("reap", (1,), None)

OLDER = (
    "+auth +blmpop +client|setname +cluster|slots +del +evalsha +exists +get +hdel +hello +hget "
    "+hgetall +hincrby +hmget +hset +info +lmpop +ltrim +pexpire +ping +pttl +rpush +sadd +scard "
    "+script|exists +script|load +select +set +smembers +srem +time +ttl +type +xadd +xlen +xrange "
    "+xread +xrevrange +zadd +zcard +zcount +zrange +zrank +zrem +zscore"
)
"""Commands that users.acl gave an agent before there were functions."""


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A server whose calls nobody else adds to."""
    return own


@pytest.fixture
def pool(server: Server) -> Iterator[Pool]:
    """A pool with one device, on a server without functions."""
    with server.connect() as redis:
        redis.function_flush()
        redis.script_flush()
        pool = Pool(redis)
        pool.report((device("gpu-a"),), deadline_ms=86_400_000)
        redis.script_flush()
        redis.config_resetstat()
        yield pool
        audit(redis, pool.keys)


def counted(redis: Redis) -> dict[str, int]:
    """Count the calls that ran since the fixture, by the way that they took."""
    stats: Any = redis.info("commandstats")
    ways = {name: stats.get(f"cmdstat_{name}", {}) for name in ("fcall", "evalsha")}
    return {
        name: row.get("calls", 0) - row.get("failed_calls", 0)
        for name, row in ways.items()
        if row.get("calls")
    }


def lease_and_release(server: Server, pool: Pool) -> None:
    store = Store(server.socket_url)
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = client.acquire("ann", memory_mb=100)
        client.renew(lease)
        assert client.release(lease)


def test_functions_are_called_where_they_are(server: Server, pool: Pool) -> None:
    """No script is asked for, nor loaded."""
    functions.load_own(pool.redis)
    lease_and_release(server, pool)
    assert counted(pool.redis) == {"fcall": 3}


def test_scripts_do_the_work_where_there_are_none(server: Server, pool: Pool) -> None:
    """The function is asked for once."""
    lease_and_release(server, pool)
    assert counted(pool.redis) == {"fcall": 0, "evalsha": 3}


async def test_async_calls_take_what_is_there(server: Server, pool: Pool) -> None:
    """The same for asyncio, before and after somebody takes the functions away."""
    functions.load_own(pool.redis)
    store = Store(server.socket_url)
    async with AsyncLeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = await client.acquire("ann", memory_mb=100)
        pool.redis.function_flush()
        await client.renew(lease)
        assert await client.release(lease)
    assert counted(pool.redis) == {"fcall": 1, "evalsha": 2}


def test_functions_that_go_are_missed_by_nobody(server: Server, pool: Pool) -> None:
    """FUNCTION FLUSH between two calls: the second is a script, with the same effect."""
    functions.load_own(pool.redis)
    store = Store(server.socket_url)
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = client.acquire("ann", memory_mb=100)
        pool.redis.function_flush()
        assert client.release(lease)
        assert client.wording.missing
    assert counted(pool.redis) == {"fcall": 1, "evalsha": 1}


def test_functions_are_asked_for_again_after_a_while(
    server: Server, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lives long takes the better way once it is there."""
    monkeypatch.setattr(dispatch, "AGAIN_S", 0.2)
    store = Store(server.socket_url)
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = client.acquire("ann", memory_mb=100)
        functions.load_own(pool.redis)
        time.sleep(0.25)
        assert client.release(lease)
    assert counted(pool.redis) == {"fcall": 1, "evalsha": 1}


def test_renewals_of_many_go_on_when_the_functions_go(server: Server, pool: Pool) -> None:
    """One pipeline: what was understood is not said again."""
    functions.load_own(pool.redis)
    link = RedisTransport(Store(server.socket_url).connect, pool.keys)
    tokens = [f"{n:016}" for n in range(5)]
    assert list(link.release(tokens)) == [True] * 5
    pool.redis.function_flush()
    assert list(link.release(tokens)) == [True] * 5
    link.close()
    assert counted(pool.redis) == {"fcall": 5, "evalsha": 5}


def test_leases_of_a_process_are_renewed_by_one_call(server: Server, pool: Pool) -> None:
    """However many are due, also as a script, and each hears its own answer."""
    functions.load_own(pool.redis)
    store = Store(server.socket_url)
    link = RedisTransport(store.connect, pool.keys)
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        leases = [client.acquire("ann", memory_mb=100) for _ in range(5)]
        client.release(leases[3].token)
        for way in ("fcall", "evalsha"):
            pool.redis.config_resetstat()
            found = list(link.renew(leases))
            lost = found.pop(3)
            assert isinstance(lost, LeaseLost)
            assert lost.code == "released"
            assert [isinstance(one, Renewal) for one in found] == [True] * 4
            assert counted(pool.redis).get(way) == 1
            pool.redis.function_flush()
            pool.redis.script_flush()
    link.close()


def test_leases_are_renewed_one_by_one_where_they_cannot_be_at_once(
    server: Server, pool: Pool
) -> None:
    """One that is not well-formed, so that all are refused together, costs no other its lease."""
    store = Store(server.socket_url)
    link = RedisTransport(store.connect, pool.keys)
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        leases = [client.acquire("ann", memory_mb=100) for _ in range(3)]
        leases[1].ttl_ms = 1
        found = list(link.renew(leases))
        assert [isinstance(one, Renewal) for one in found] == [True, False, True]
        assert isinstance(found[1], BadRequest)
    link.close()


def test_user_of_an_older_acl_has_the_scripts(server: Server, pool: Pool) -> None:
    """EVALSHA without FCALL, and all else that an agent may. No broker loads anything for it."""
    functions.load_own(pool.redis)
    pool.redis.execute_command(
        "ACL", "SETUSER", "older", "on", ">x", "~gpu:{*", "-@all", *OLDER.split()
    )
    store = Store(server.url.replace("redis://", "redis://older:x@"))
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = client.acquire("ann", memory_mb=100)
        client.renew(lease)
        assert client.release(lease)
        assert not client.wording.missing
    pool.redis.execute_command("ACL", "DELUSER", "older")
    assert counted(pool.redis) == {"evalsha": 3}


def test_another_error_is_not_taken_for_a_missing_function(pool: Pool) -> None:
    """It is the caller's."""
    with pytest.raises(ResponseError, match="WRONGTYPE") as caught:
        pool.redis.hget(pool.keys.deadlines, "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        Dispatch(pool.keys.base).amend(REAP, caught.value)


async def test_broker_puts_the_functions_back(server: Server, pool: Pool) -> None:
    """At its next call after they are gone; and keeps no connection for that."""
    async with AsyncLeaseClient(Store(server.socket_url), pool=pool.keys.pool_name) as client:
        loading = Loading(client)
        await client.reap()
        before = pool.redis.info("clients")["connected_clients"]
        for _ in range(2):
            await loading.load_missing()
            assert own_library().name in functions.libraries(pool.redis)
            await client.reap()
        assert pool.redis.info("clients")["connected_clients"] == before
    assert counted(pool.redis) == {"fcall": 2, "evalsha": 1}


async def test_broker_that_comes_second_goes_on_with_scripts_for_a_while(
    server: Server, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not load again and again, whatever it is that has the name."""
    monkeypatch.setattr(dispatch, "AGAIN_S", 2.0)
    async with AsyncLeaseClient(Store(server.socket_url), pool=pool.keys.pool_name) as client:
        await client.reap()
        functions.load_own(pool.redis)
        await Loading(client).load_missing()
        assert not client.wording.missing
        await client.reap()
        await asyncio.sleep(2.1)
        await client.reap()
    assert counted(pool.redis) == {"fcall": 1, "evalsha": 2}


async def test_broker_that_may_load_nothing_goes_on_and_says_so_once(
    server: Server, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Scripts do the work; it is tried again when the functions are asked for again."""
    caplog.set_level("INFO", "broker.maintenance.function_loader")
    pool.redis.execute_command("ACL", "SETUSER", "humble", "on", ">x", "~*", "+@all", "-function")
    store = Store(server.url.replace("redis://", "redis://humble:x@"))
    async with AsyncLeaseClient(store, pool=pool.keys.pool_name) as client:
        loading = Loading(client)
        await client.reap()
        for _ in range(3):
            client.wording.missing = True
            await loading.load_missing()
        await client.reap()
    pool.redis.execute_command("ACL", "DELUSER", "humble")
    assert counted(pool.redis) == {"fcall": 0, "evalsha": 2}
    (said,) = [record.message for record in caplog.records]
    assert "scripts do their work" in said


def test_versions_beside_each_other_keep_to_their_own_code(pool: Pool) -> None:
    """Names carry the version: loading another one's library takes nothing away."""
    functions.load_own(pool.redis)
    other = functions.assemble(own=True, instead={"events": "-- none\n"})
    assert other.version != own_library().version
    pool.redis.function_load(other.source)
    assert pool.redis.fcall(own_library().function("reap"), 1, Keys("none").base, 1)[5] == (
        "not_ready"
    )
    assert functions.delete(pool.redis) == sorted([own_library().name, other.name])
