"""Calls of the SDK to a store in trouble: full, denied, busy, a replica, without replicas."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import redis

from agent_sdk import AsyncLeaseClient, LeaseClient, LeaseError, Store
from tests.faults.proxy import Proxy
from tests.reports import register
from tests.servers import free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server


@pytest.fixture
def admin(own: Server) -> Iterator[redis.Redis]:
    """Its administrator; afterwards it is as it was."""
    with own.connect() as client:
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.config_set("replica-serve-stale-data", "yes")
        client.execute_command("ACL", "SETUSER", "default", "nopass")


@pytest.fixture
def agent(own: Server) -> Iterator[LeaseClient]:
    """A client on a pool of its own, with one device."""
    with client_of(own.url) as client:
        register(client)
        yield client


def client_of(url: str, pool: str | None = None, deadline_s: float = 0.5) -> LeaseClient:
    """A client that gives up soon."""
    pool = pool or f"p-{uuid4().hex[:8]}"
    return LeaseClient(Store(url, 0.3), pool=pool, hostname="h1", deadline_s=deadline_s)


AT_ONCE_S, PATIENT_S = 5.0, 10.0
"""Answer without another try, with room for a busy machine; a deadline that shows every try."""


def failing(call: Callable[[], object]) -> tuple[LeaseError, float]:
    """Return the error of a call, and the seconds until it came."""
    began = time.monotonic()
    with pytest.raises(LeaseError) as told:
        call()
    return told.value, time.monotonic() - began


def test_acquire_on_a_full_store_fails_at_once_and_release_goes_on(
    admin: redis.Redis, agent: LeaseClient
) -> None:
    """maxmemory reached: store_full without waiting, while what gives back is still taken."""
    agent.deadline_s = PATIENT_S
    lease = agent.acquire("a", memory_mb=10)
    admin.config_set("maxmemory", 1)
    told, seconds = failing(lambda: agent.acquire("a", memory_mb=10))
    assert (told.code, seconds < AT_ONCE_S) == ("store_full", True)
    agent.renew(lease)
    assert agent.release(lease)


@pytest.mark.parametrize(
    "rights",
    [
        ("-@all", "~*"),
        ("+@all", "~other:*"),
        ("+@all", "%R~*"),
        ("+@all", "-evalsha", "~*"),
        ("+@all", "-time", "-hmget", "-hget", "~*"),
        ("+@all", "-hset", "-set", "-zadd", "~*"),
    ],
    ids=["nothing", "other keys", "read only", "no scripts", "no reading", "no writing"],
)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_acquire_without_the_rights_is_denied_at_once(kind: str, rights: tuple[str, ...]) -> None:
    """Whichever right is missing, of the call or of a command inside the script."""
    with running(kind) as server, server.connect() as client:
        with client_of(server.url, "default") as agent:
            register(agent)
        client.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">guest", *rights)
        url = server.url.replace("://", "://guest:guest@")
        with client_of(url, "default", PATIENT_S) as guest:
            told, seconds = failing(lambda: guest.acquire("a", memory_mb=10))
            assert (told.code, seconds < AT_ONCE_S) == ("denied", True), told
            assert "guest@" not in str(told)


def test_acquire_with_a_wrong_password_or_none_is_denied(
    admin: redis.Redis, own: Server, agent: LeaseClient
) -> None:
    """WRONGPASS and NOAUTH at the connection's start."""
    pool = agent.keys.pool_name
    admin.execute_command("ACL", "SETUSER", "default", "resetpass", ">right")
    for credentials in ("", "default:wrong@", "nobody:right@"):
        with client_of(own.url.replace("://", f"://{credentials}"), pool) as other:
            told, _ = failing(lambda other=other: other.acquire("a", memory_mb=10))
            assert told.code == "denied", told
    with client_of(own.url.replace("://", "://:right@"), pool) as other:
        assert other.acquire("a", memory_mb=10).memory_mb == 10


@contextmanager
def busy(server: Server, for_s: float) -> Iterator[None]:
    """A script that keeps the server for so long, or until it is killed at the block's end."""
    code = "local t = ARGV[1] + 0; repeat local n = redis.call('TIME') until n[1] + n[2] / 1e6 > t"

    def script() -> None:
        with server.connect() as client, suppress(redis.ResponseError):  # it was killed
            client.eval(code, 0, time.time() + for_s)

    with server.connect() as killer:
        killer.config_set("busy-reply-threshold", 20)
        thread = threading.Thread(target=script)
        thread.start()
        time.sleep(0.1)
        try:
            yield
        finally:
            with suppress(redis.ResponseError):  # it had ended
                killer.script_kill()
            thread.join()


def test_acquire_during_a_slow_script_is_granted_when_it_ends(
    own: Server, agent: LeaseClient
) -> None:
    """BUSY is waited out."""
    agent.deadline_s = 5
    began = time.monotonic()
    with busy(own, 0.6):
        assert agent.acquire("a", memory_mb=10).memory_mb == 10
        assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("what", ["acquire", "pool", "devices"])
def test_call_during_a_slow_script_that_goes_on_is_store_unavailable(
    own: Server, agent: LeaseClient, what: str
) -> None:
    """Tried until the deadline, whether it would write or only look."""
    calls = {
        "acquire": lambda: agent.acquire("a", memory_mb=10),
        "pool": agent.pool,
        "devices": agent.devices,
    }
    with busy(own, 10):
        told, seconds = failing(calls[what])
    assert told.code == "store_unavailable", told
    assert seconds < 0.5 + 0.5
    assert len(agent.devices()) == 1


def test_acquire_on_a_replica_is_store_unavailable(admin: redis.Redis, agent: LeaseClient) -> None:
    """READONLY and MASTERDOWN may pass with a failover: repeated, then unavailable."""
    admin.config_set("replica-serve-stale-data", "yes")
    admin.execute_command("REPLICAOF", "127.0.0.1", free_port())
    told, seconds = failing(lambda: agent.acquire("a", memory_mb=10))
    assert (told.code, seconds > 0.1) == ("store_unavailable", True), told
    assert "read" in str(told).lower()
    admin.config_set("replica-serve-stale-data", "no")
    told, seconds = failing(agent.pool)
    assert (told.code, seconds > 0.1) == ("store_unavailable", True), told
    assert "MASTER" in str(told)


def test_acquire_during_a_failover_is_granted_after_it(
    admin: redis.Redis, agent: LeaseClient
) -> None:
    """A replica that becomes the primary within the deadline grants once holders have renewed."""
    agent.deadline_s = 5
    admin.execute_command("REPLICAOF", "127.0.0.1", free_port())
    timer = threading.Timer(0.4, admin.execute_command, ("REPLICAOF", "NO", "ONE"))
    timer.start()
    lease = agent.acquire("a", memory_mb=10, wait_s=30)
    timer.join()
    assert [row.token for row in agent.leases()] == [lease.token]


def test_acquire_without_enough_replicas_is_store_unavailable(
    admin: redis.Redis, agent: LeaseClient
) -> None:
    """NOREPLICAS: repeated, then unavailable, and nothing was granted."""
    admin.config_set("min-replicas-to-write", 1)
    told, seconds = failing(lambda: agent.acquire("a", memory_mb=10))
    assert (told.code, seconds > 0.1) == ("store_unavailable", True), told
    admin.config_set("min-replicas-to-write", 0)
    assert agent.leases() == ()


def test_acquire_whose_reply_is_lost_before_the_store_is_full_leaves_no_lease(
    admin: redis.Redis, own: Server, agent: LeaseClient
) -> None:
    """A grant whose reply was lost is outcome_unknown, and is given back."""

    def passes(chunk: bytes) -> bool:
        if b"GRANTED" not in chunk:
            return True
        admin.config_set("maxmemory", 1)
        return False

    with (
        Proxy(own.port, passes) as proxy,
        client_of(proxy.url, agent.keys.pool_name, 2.0) as behind,
    ):
        told, _ = failing(lambda: behind.acquire("a", memory_mb=10, ttl_s=60))
        admin.config_set("maxmemory", 0)
        until = time.monotonic() + 3
        while agent.leases() and time.monotonic() < until:
            time.sleep(0.05)
        assert (told.code, agent.leases()) == ("outcome_unknown", ())


async def test_new_connection_logs_nothing(own: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Check connections of threads and of tasks: redis-py logs what a server refused."""
    with caplog.at_level("DEBUG"):
        with client_of(own.url) as client:
            client.redis.ping()
        async with AsyncLeaseClient(Store(own.url), hostname="h1") as other:
            await other.redis.ping()
    assert [record.name for record in caplog.records if record.name.startswith("redis")] == []
