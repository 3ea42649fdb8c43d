"""`redis+sentinel://`: the primary is found, also a new one, by both clients and their threads."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import redis

from agent_sdk import AsyncLeaseClient, LeaseClient, LeaseError, Store
from tests.api.brokers import GRANTING, Broker, eventually
from tests.audit import audit
from tests.redis.callers import AGAIN_S, calling
from tests.redis.clients import acquiring
from tests.redis.doors import check_doors
from tests.reports import register
from tests.servers import binary, free_port
from tests.stores import SERVICE, Sentinels, sentinels, until, write_sentinel_conf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


ROUNDS = 5 if os.environ.get("GPU_BROKER_SOAK") else 1


@pytest.fixture(scope="module")
def fleet() -> Iterator[Sentinels]:
    with sentinels() as fleet:
        yield fleet


@pytest.fixture
def client(fleet: Sentinels) -> Iterator[LeaseClient]:
    """One device of 1000 MiB in a pool of its own."""
    with client_of(fleet.url) as client:
        register(client)
        yield client


def client_of(
    url: str, pool: str = "", deadline_s: float = 10, timeout_s: float = 1
) -> LeaseClient:
    return LeaseClient(
        Store(url, timeout_s), pool=pool or f"s-{uuid4().hex[:8]}", hostname="h1",
        deadline_s=deadline_s,
    )  # fmt: skip


def url_of(*ports: int, service: str = SERVICE) -> str:
    nodes = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"redis+sentinel://{nodes}/{service}"


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word, as a machine that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_lease_by_sentinels(fleet: Sentinels, client: LeaseClient) -> None:
    """Both clients lease from the primary; a database is named after the service."""
    lease = client.acquire("a", memory_mb=10)
    async with AsyncLeaseClient(Store(fleet.url), pool=client.keys.pool_name) as other:
        assert [row.token for row in await other.leases()] == [lease.token]
        await other.release(lease.token)
    with client_of(f"{fleet.url}/3?protocol=2", "elsewhere") as third:
        register(third)
    with fleet.primary().connect() as admin:
        assert "db3" in admin.info("keyspace")


def test_dead_sentinels_cost_no_more_than_a_connect(fleet: Sentinels, client: LeaseClient) -> None:
    """One hangs, one refuses: half a timeout, once, since who fails is asked last from then on."""
    with silent() as hanging:
        url = url_of(hanging, free_port(), *fleet.ports)
        with client_of(url, client.keys.pool_name, timeout_s=4) as other:
            began = time.monotonic()
            assert len(other.devices()) == 1
            assert time.monotonic() - began < 3.5
            other.redis.connection_pool.disconnect()
            began = time.monotonic()
            other.devices()
            assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_sentinel_answers_is_store_unavailable_by_the_deadline(kind: str) -> None:
    """All hang: the caller's deadline holds, one timeout at most after it; nothing was done."""
    deadline_s, timeout_s = 0.5, 0.3
    with ExitStack() as stack:
        url = url_of(*(stack.enter_context(silent()) for _ in range(5)))
        store = Store(url, timeout_s)
        acquire = stack.enter_context(acquiring(kind, store, "default", deadline_s))
        began = time.monotonic()
        with pytest.raises(LeaseError) as told:
            acquire(str(uuid4()))
        assert time.monotonic() - began < deadline_s + 2 * timeout_s
    assert told.value.code == "store_unavailable"
    assert f"the primary of '{SERVICE}' that its Sentinels name" in str(told.value)


def test_unknown_service_says_so(fleet: Sentinels) -> None:
    """A slip in the URL's last part is told from a store that is away."""
    with (
        client_of(url_of(*fleet.ports, service="typo"), deadline_s=0.2) as other,
        pytest.raises(LeaseError, match=r"primary of 'typo'.*knows none"),
    ):
        other.devices()


@pytest.mark.parametrize(
    ("is_now", "told"), [("a replica", "it is at a replica as yet"), ("dead", "refused")]
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_sentinel_that_was_cut_off_is_not_believed(
    fleet: Sentinels, client: LeaseClient, tmp_path: Path, kind: str, is_now: str, told: str
) -> None:
    """It names an old primary, which says that it is none, or nothing: another is asked.

    It has no channel on which the others tell it, through that server, who is primary.
    """
    replica = next(server for server in fleet.servers if is_replica(server))
    with replica.connect() as admin:
        admin.execute_command("ACL", "SETUSER", "cut-off", "on", ">x", "~*", "+@all")
    port, old = free_port(), replica.port if is_now == "a replica" else free_port()
    path = write_sentinel_conf(tmp_path, port, old)
    with path.open("a") as file:
        file.write(f"sentinel auth-user {SERVICE} cut-off\nsentinel auth-pass {SERVICE} x\n")
    with subprocess.Popen([binary("redis"), path, "--sentinel"], cwd=tmp_path) as process:
        try:
            stale = Sentinels([], [port], [])
            until(lambda: stale.ask(0, "GET-MASTER-ADDR-BY-NAME", SERVICE))
            with (
                client_of(url_of(port), client.keys.pool_name, deadline_s=0.2) as misled,
                pytest.raises(LeaseError, match=told),
            ):
                misled.devices()
            assert stale.named() == old
            store = Store(url_of(port, *fleet.ports))
            with acquiring(kind, store, client.keys.pool_name, 10) as acquire:
                acquire(str(uuid4()))
        finally:
            process.kill()


def is_replica(server: Server) -> bool:
    """Tell what a server takes itself for: a Sentinel may not know it yet."""
    with suppress(redis.ConnectionError), server.connect() as client:
        return bool(client.role()[0] == "slave")  # type: ignore[no-untyped-call] # in redis-py
    return False


def test_every_door_works_by_sentinels(fleet: Sentinels) -> None:
    """The broker, its stream of events and the commands; doctor says which server it is."""
    said = check_doors(fleet.url, f"doors-{uuid4().hex[:8]}")
    assert f"port {fleet.named()}, replicas: 2" in said


def test_address_of_a_sentinel_itself_is_told_to_be_one(fleet: Sentinels) -> None:
    """REDIS_URL=redis://sentinel:26379: the form that it should have, once it has answered."""
    url = f"redis://127.0.0.1:{fleet.ports[0]}"
    with Broker(**GRANTING, REDIS_URL=url) as broker:
        broker.wait("/health")
        ready = partial(broker.http.get, "/ready")
        eventually(lambda: "redis+sentinel://HOST" in ready().json()["reason"], 5)


# Failover


def wait_in_queue(client: LeaseClient, token: str, served: list[str]) -> threading.Thread:
    """Somebody waits for all of the device, and gives it back."""

    def wait() -> None:
        with client.lease("b", memory_mb=1000, token=token, wait_s=60):
            served.append(token)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: token in {waiter.token for waiter in client.queue()})
    return thread


def test_failover_under_load_is_over_a_second_after_sentinel_names_the_new(
    fleet: Sentinels,
) -> None:
    """SIGKILL of the primary: sync and async calls go on, what was replicated is there, a lease
    that is renewed in the background is held, and the queue is as it was.
    """
    for _ in range(ROUNDS):
        with client_of(fleet.url) as client:
            register(client)
            check_failover(fleet, client)
        fleet.mend()


def check_failover(fleet: Sentinels, client: LeaseClient) -> None:
    pool = client.keys.pool_name
    leases = {name: client.acquire("a", memory_mb=10, ttl_s=60) for name in ("sync", "async")}
    kept = client.acquire("a", memory_mb=900, ttl_s=5)
    client.keep(kept)
    waiters = [f"waiter-{n}-{uuid4().hex}" for n in range(2)]
    served: list[str] = []
    threads = [wait_in_queue(client, token, served) for token in waiters]
    with asyncio.Runner() as runner:
        other = AsyncLeaseClient(Store(fleet.url), pool=pool, hostname="h1", deadline_s=10)
        calls = {
            "renew": lambda: client.renew(leases["sync"].token),
            "renew_async": lambda: runner.run(other.renew(leases["async"].token)),
            "read": client.queue,
        }
        with calling(**calls) as callers:
            time.sleep(0.3)
            named_at = fleet.fail_over()
            until(lambda: all(c.first_after(named_at) < float("inf") for c in callers.values()))
        late = {name: caller.first_after(named_at) - named_at for name, caller in callers.items()}
        runner.run(other.close())
    assert max(late.values()) < 2 * AGAIN_S, late
    assert [caller.failed for caller in callers.values()] == [[], [], []]
    assert [waiter.token for waiter in client.queue()] == waiters
    until(lambda: client.lookup(kept.token).expires_at_ms > client.pool().now_ms + 4000)
    assert not kept.lost
    assert not kept.jeopardy
    with fleet.primary().connect() as admin:
        audit(admin, client.keys)
    for lease in (kept, *leases.values()):
        assert client.release(lease)
    for thread in threads:
        thread.join()
    assert served == waiters
