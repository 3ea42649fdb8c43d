"""Redis comes back without its last writes, with those of another day, or without any: a holder
of a lease goes on holding it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from agent_sdk import BrokerUnavailable, LeaseClient, Store
from agent_sdk.errors import LeaseError, LeaseLost
from agent_sdk.scripts.library import load
from agent_sdk.store import clean_stop
from agent_sdk.store.embedded import EmbeddedStore
from tests.api.brokers import PROGRAM, environment, eventually
from tests.audit import audit
from tests.pools import device
from tests.reports import register
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

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
        register(client, device("gpu-a"))
        yield client


def check_closed(client: LeaseClient) -> None:
    """Nothing is granted, and the answer says why."""
    with pytest.raises(BrokerUnavailable) as refusal:
        client.acquire("late", memory_mb=10)
    assert refusal.value.code == "closed"


def known(client: LeaseClient, token: str) -> bool:
    """Return whether the ledger has the lease."""
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


def test_grant_that_data_put_back_lack_is_brought_back_by_its_holder(
    server: Server, client: LeaseClient
) -> None:
    """The server is the same, so only its holder knows: it looks, and says so long before its turn.

    Its ttl is long, so that nothing but the look makes it renew in time.
    """
    client.redis.save()
    with client.lease("holder", memory_mb=900, ttl_s=600, exclusive=True) as lease:
        time.sleep(0.5)
        with server.connect() as redis:
            redis.execute_command("DEBUG", "RELOAD", "NOSAVE")
        eventually(lambda: known(client, lease.token), HEARD_S)
        check_closed(client)
        assert client.pool().stats["recovered"] == 1
        assert not lease.lost
    audit(client.redis, client.keys)


@pytest.fixture
def folder() -> Iterator[Path]:
    """For an embedded store, with a path that a socket may have."""
    with TemporaryDirectory(prefix="gpu-broker-", dir="/tmp") as name:
        yield Path(name) / "state"


def started(folder: Path) -> tuple[EmbeddedStore, LeaseClient]:
    """An embedded store with a host that has one device, and a client."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    client = LeaseClient(Store(store.url), hostname="h1", deadline_s=10)
    register(client, device("gpu-a"))
    return store, client


def stopped(store: EmbeddedStore, client: LeaseClient) -> None:
    """In good order."""
    client.close()
    assert store.leave() is True


@pytest.mark.parametrize("functions", [False, True], ids=["scripts", "functions"])
@pytest.mark.parametrize("how", ["backup", "backup without its note", "only the data"])
def test_backup_of_a_clean_stop_grants_nothing_before_holders_renew(
    folder: Path, how: str, functions: bool
) -> None:
    """Made, and put back, within seconds; its pool lacks the name of a server as after any stop."""
    backup = folder.parent / "backup"
    store, client = started(folder)
    if functions:
        load(client.redis)
    stopped(store, client)
    shutil.copytree(folder, backup)
    if how == "backup without its note":
        (backup / "stopped").unlink()
    store, client = started(folder)
    with client.lease("holder", memory_mb=900, ttl_s=60, exclusive=True) as lease:
        assert store.leave() is True
        if how == "only the data":
            shutil.rmtree(folder / "appendonlydir")
            shutil.copytree(backup / "appendonlydir", folder / "appendonlydir")
        else:
            shutil.rmtree(folder)
            shutil.copytree(backup, folder)
        store, late = started(folder)
        check_closed(late)
        eventually(lambda: known(late, lease.token), HEARD_S)
        assert late.pool().stats["recovered"] == 1
        assert not lease.lost
    client.close()
    stopped(store, late)


@pytest.mark.parametrize("how", [clean_stop.forget_server, clean_stop.distrust])
def test_server_after_a_stop_is_looked_at_by_the_first_call(
    client: LeaseClient, how: Callable[[Redis], None]
) -> None:
    """It may be there within the tenth of a second in which scripts do not look again."""
    client.acquire("agent", memory_mb=10)
    assert client.redis.hget(client.keys.pool, "looked_ms")
    how(client.redis)
    assert client.redis.hget(client.keys.pool, "looked_ms") is None


@pytest.mark.parametrize("functions", [False, True], ids=["scripts", "functions"])
@pytest.mark.parametrize("moved", [False, True])
def test_store_that_was_stopped_cleanly_is_open_at_once(
    folder: Path, moved: bool, functions: bool
) -> None:
    """It may be in a folder of another name: the files are those that were left."""
    store, client = started(folder)
    if functions:
        load(client.redis)
    lease = client.acquire("holder", memory_mb=100, ttl_s=60)
    stopped(store, client)
    if moved:
        folder = folder.rename(folder.parent / "moved")
    store, client = started(folder)
    assert client.lookup(lease.token) is not None
    client.acquire("another", memory_mb=100)
    stopped(store, client)


def test_after_flushall_holders_come_first(server: Server, client: LeaseClient) -> None:
    """Everything is gone; the host remembers that there was a pool, so it is closed at first."""
    epoch = client.pool().epoch
    with client.lease("holder", memory_mb=900, ttl_s=30) as lease:
        time.sleep(0.5)
        with server.connect() as redis:
            redis.flushall()
        assert register(client, device("gpu-a"), epoch=epoch).epoch != epoch
        check_closed(client)
        eventually(lambda: known(client, lease.token), HEARD_S)
        assert not lease.lost
        check_closed(client)
        audit(client.redis, client.keys)


def test_wait_for_the_end_of_a_lease_outlasts_the_loss_of_its_record(
    server: Server, client: LeaseClient
) -> None:
    """It is brought back, and so it has not ended."""
    epoch = client.pool().epoch
    with client.lease("holder", memory_mb=900, ttl_s=30) as lease:
        words = [PROGRAM, "wait", lease.token, "--end", "-o", "json"]
        env = environment(REDIS_URL=server.url)
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as waiting:
            with server.connect() as redis:
                eventually(lambda: any("xread" in x["cmd"] for x in redis.client_list()), 20)
                redis.flushall()
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(6)  # it looks each 5 s
            register(client, device("gpu-a"), epoch=epoch)
            eventually(lambda: known(client, lease.token), HEARD_S)
            client.release(lease)
            said = json.loads(waiting.communicate(timeout=20)[0])
    assert (waiting.returncode, said["outcome"]) == (0, "released")


def test_after_flushall_waiters_queue_again(server: Server, client: LeaseClient) -> None:
    """Also where they ask before a host has reported to the new pool."""
    waiter = LeaseClient(Store(server.url), hostname="h1")
    with client.lease("holder", memory_mb=900, ttl_s=30), ThreadPoolExecutor() as threads, waiter:
        waiting = threads.submit(waiter.acquire, "waiter", memory_mb=900, wait_s=30)
        eventually(client.queue, HEARD_S)
        with server.connect() as redis:
            redis.flushall()
        time.sleep(5)  # the head of a queue asks each 3 s
        assert not waiting.done()
        register(client, device("gpu-a"))
        eventually(client.queue, HEARD_S)
        client.release(client.queue()[0].token)
        assert isinstance(waiting.exception(20), LeaseLost)


def test_a_host_that_knew_of_no_pool_is_corrected_by_the_first_holder(
    server: Server, client: LeaseClient
) -> None:
    """Store and reporter were both made anew: the pool is open until a holder's renewal."""
    with client.lease("holder", memory_mb=900, ttl_s=30) as lease:
        time.sleep(0.5)
        with server.connect() as redis:
            redis.flushall()
        register(client, device("gpu-a"))
        eventually(lambda: known(client, lease.token), HEARD_S)
        check_closed(client)
        assert not lease.lost
