"""Releases that are sent and not waited for: each happens once, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import BadRequest, LeaseClient, Store
from agent_sdk.renewal.abandoned import BATCH
from agent_sdk.renewal.at_exit import owing
from agent_sdk.scripts import library as functions
from tests.faults.callers import Caller, Wire, living
from tests.faults.proxy import Proxy
from tests.pools import device
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pools import Pool
    from tests.servers import Server


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture(params=["sync", "async"])
def caller(
    request: pytest.FixtureRequest, server: Server, pool: Pool, wire: Wire
) -> Iterator[Caller]:
    """One device of 1000 MiB, and a client that waits for no release; no lease is left."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    with Proxy(server.port, wire.passes, wire.answers) as proxy:
        caller = Caller(request.param, proxy.url, pool, 2.0, wait_release=False)
        caller.pool()
        yield caller
        wire.lose = 0
        caller.close()
        assert living(pool) == set()
        assert caller.client.keeper not in owing
        if caller.loop:
            caller.loop.run_until_complete(asyncio.sleep(0))  # transports close at a next turn
            caller.loop.close()


@pytest.fixture(params=["", "?protocol=2", "?protocol=3", "unix"])
def client(request: pytest.FixtureRequest, server: Server, pool: Pool) -> Iterator[LeaseClient]:
    """Over each protocol and transport."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    url = server.socket_url if request.param == "unix" else server.url + request.param
    with LeaseClient(
        Store(url), pool=pool.keys.pool_name, hostname="h1", wait_release=False
    ) as client:
        yield client
    assert living(pool) == set()


def releases(wire: Wire) -> int:
    """Return how many releases the client sent."""
    return sum(chunk.count(b"gpu_release") for chunk in wire.sent)


def settled(client: LeaseClient) -> bool:
    """Return whether nothing is left for the renewing thread to give back."""
    return not client._keeper._abandoned


def only(pool: Pool, token: str) -> bool:
    """Return whether a token's lease is the only one."""
    return living(pool) == {token}


def test_next_acquire_gets_the_room_of_the_release_before_it(client: LeaseClient) -> None:
    """They go one after the other; readings in between get answers of their own."""
    for turn in range(40):
        lease = client.acquire("me", exclusive=True, memory_mb=900)
        assert client.release(lease)
        assert lease.released
        if turn % 3 == 0:
            assert client.leases() == ()
        if turn % 5 == 0:
            assert client.lookup(lease.token) == "released"
    until(lambda: settled(client))


def test_release_without_a_next_call_is_done_at_once_and_sent_once(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """The renewing thread takes the answer, or repeats it where the event loop runs no more."""
    lease = caller.acquire("me", memory_mb=100)
    wire.sent.clear()
    assert caller.release(lease)
    until(lambda: living(pool) == set(), 2)
    until(lambda: settled(caller.client))
    time.sleep(0.3)
    assert pool.stats()["released"] == 1
    assert releases(wire) == 1 or (caller.loop and releases(wire) == 2)


def test_blocks_and_leases_release_as_their_client_does(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """An option of the client, and of each call before it."""

    def in_block() -> None:
        with caller.client.lease("me", memory_mb=100):
            pass

    async def in_async_block() -> None:
        async with caller.client.lease("me", memory_mb=100):
            pass

    if caller.loop:
        caller.loop.run_until_complete(in_async_block())
    else:
        in_block()
    until(lambda: living(pool) == set())
    lease = caller.acquire("me", memory_mb=100)
    wire.sent.clear()
    assert caller.release(lease, wait=True)
    assert living(pool) == set()
    assert not caller.release(lease.token, wait=True)
    assert releases(wire) == 2


def test_more_releases_than_answers_may_wait_are_all_done(client: LeaseClient, pool: Pool) -> None:
    """A crowd of leases ends without another call in between."""
    held = [client.acquire("me", memory_mb=1) for _ in range(200)]
    for lease in held:
        assert client.release(lease)
    until(lambda: living(pool) == set())
    until(lambda: settled(client))
    assert pool.stats()["released"] == len(held)


def test_release_whose_connection_breaks_before_the_server_has_it_is_repeated(
    caller: Caller, pool: Pool, server: Server, wire: Wire
) -> None:
    """The server is silent when it is sent, and cuts the connection before it looks."""
    for turn in range(1, 4):
        lease = caller.acquire("me", exclusive=True, memory_mb=900)
        with server.connect() as admin:
            admin.client_pause(300, all=False)  # writes wait
            assert caller.release(lease)
            admin.client_kill_filter(_type="normal", skipme=True)
            admin.client_unpause()
        until(lambda: living(pool) == set(), 5)
        until(lambda: settled(caller.client))
        assert pool.stats()["released"] == turn


def test_release_whose_answer_is_lost_is_repeated_and_happens_once(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """The connection breaks after it was executed."""
    for turn in range(1, 6):
        lease = caller.acquire("me", exclusive=True, memory_mb=900)
        wire.lose = 1
        assert caller.release(lease)
        until(lambda: living(pool) == set(), 5)
        until(lambda: settled(caller.client), 5)
        wire.lose = 0
        assert pool.stats()["released"] == turn


def test_call_after_a_release_whose_answer_is_lost_is_made(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """Its connection breaks where the answer to the release is read."""
    for turn in range(1, 6):
        lease = caller.acquire("me", memory_mb=100)
        wire.lose = 1
        caller.release(lease)
        held = caller.acquire("me", memory_mb=100)
        wire.lose = 0
        until(partial(only, pool, held.token), 5)
        assert caller.release(held, wait=True)
        assert pool.stats()["released"] == 2 * turn


def test_release_while_the_store_is_away_happens_when_it_is_back(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """It raises nothing, and does not wait for the store."""
    lease = caller.acquire("me", memory_mb=100)
    wire.lose = 1_000_000
    began = time.monotonic()
    assert caller.release(lease)
    assert time.monotonic() - began < 0.5
    time.sleep(0.5)
    wire.lose = 0
    until(lambda: living(pool) == set(), 10)
    until(lambda: settled(caller.client), 10)


def test_release_that_the_server_refuses_is_told_and_repeated(
    server: Server, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """A user that lost its rights for a while; the connection stands."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    rights = ("~*", "&*", "+@all", "on", ">word")
    with server.connect() as admin:
        admin.execute_command("ACL SETUSER", "worker", *rights)
        url = server.url.replace("redis://", "redis://worker:word@")
        with LeaseClient(Store(url), pool=pool.keys.pool_name, hostname="h1") as client:
            lease = client.acquire("me", memory_mb=100)
            admin.config_set("min-replicas-to-write", 1)
            assert client.release(lease, wait=False)
            until(lambda: "is repeated" in caplog.text)
            assert living(pool) == {lease.token}
            admin.config_set("min-replicas-to-write", 0)
            until(lambda: living(pool) == set(), 5)
            until(lambda: settled(client))
        admin.execute_command("ACL DELUSER", "worker")
    assert lease.token not in caplog.text


def test_close_takes_the_answers_of_all_releases(caller: Caller, pool: Pool, wire: Wire) -> None:
    """None is sent twice, and nothing is owed afterwards."""
    held = [caller.acquire("me", memory_mb=1) for _ in range(20)]
    wire.sent.clear()
    for lease in held[:-1]:
        caller.release(lease)
    caller.release(held[-1])
    caller.close()
    assert living(pool) == set()
    assert pool.stats()["released"] == len(held)
    assert settled(caller.client)


def test_close_gives_back_more_than_go_at_once(client: LeaseClient, pool: Pool) -> None:
    """Each of several hundred leases without expiry; the server is silent until the close."""
    held = [client.acquire(f"agent-{n % 40}", memory_mb=1, ttl_s=0) for n in range(BATCH + 50)]
    pool.redis.client_pause(300, all=False)  # writes wait
    for lease in held:
        client.abandon(lease.token)
    client.close()
    assert living(pool) == set()
    assert settled(client)


def test_answer_that_is_stuck_delays_no_renewal(server: Server, pool: Pool) -> None:
    """One connection is silent, as behind a firewall that forgot it; the others are not."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    stuck: list[bytes] = []
    ended = threading.Event()

    def passes(chunk: bytes) -> bool:
        if b"RELEASED" in chunk and not stuck:
            stuck.append(chunk)
            ended.wait(20)
        return True

    with (
        Proxy(server.port, passes) as proxy,
        LeaseClient(Store(proxy.url, 10.0), pool=pool.keys.pool_name, hostname="h1") as client,
    ):
        kept = client.acquire("kept", memory_mb=100, ttl_s=2)
        client.keep(kept)
        client.release(client.acquire("me", memory_mb=100), wait=False)
        until(lambda: stuck)
        assert not kept.wait_lost(4)
        assert living(pool) == {kept.token}
        ended.set()
        client.release(kept)


def test_exchange_after_a_sent_release_goes_behind_it(caller: Caller, pool: Pool) -> None:
    """Three marks on one connection: the release, the other release, the acquire."""
    first, other = (caller.acquire("me", memory_mb=400) for _ in range(2))
    caller.release(first)
    last = caller.exchange(other, "me", exclusive=True, memory_mb=900)
    assert living(pool) == {last.token}
    caller.release(last)


def test_release_by_token_and_with_an_owner_and_of_a_local_lease(
    caller: Caller, pool: Pool, wire: Wire
) -> None:
    """With an owner it is waited for: no repetition by the token alone may end another's lease."""
    lease = caller.acquire("me", memory_mb=100, owner="ann")
    assert not caller.release(lease.token, owner="bob")
    assert living(pool) == {lease.token}
    assert caller.release(lease.token, owner="ann")
    lease = caller.acquire("me", memory_mb=100)
    assert caller.release(lease.token)
    with pytest.raises(BadRequest):
        caller.release("no token!")
    wire.lose = 1_000_000
    local = caller.acquire("me", memory_mb=100, on_unavailable="cpu")
    wire.lose, before = 0, releases(wire)
    assert (local.local, caller.release(local)) == (True, True)
    assert releases(wire) - before <= 1  # of the acquire that fell back


def test_many_threads_release_without_waiting(client: LeaseClient, pool: Pool) -> None:
    """Each lease is given back once, whichever thread reads the answer."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(25):
                lease = client.acquire(f"agent-{number}", memory_mb=1)
                assert client.release(lease)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    until(lambda: living(pool) == set())
    until(lambda: settled(client))
    assert pool.stats()["released"] == 12 * 25


def test_forked_child_leaves_the_release_to_its_parent(client: LeaseClient, pool: Pool) -> None:
    """The child reads no answer of its parent's, and gives nothing of it back."""
    lease = client.acquire("me", memory_mb=100)
    client.release(lease)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            assert settled(client)
            own = client.acquire("child", memory_mb=100)
            client.release(own)
            client.close()
            code = 0
        os._exit(code)
    mine = client.acquire("me", memory_mb=100)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    until(lambda: living(pool) == {mine.token})
    client.release(mine)
    until(lambda: living(pool) == set())
    assert pool.stats()["released"] == 3


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)", "sys.exit(0)", "pass"])
def test_process_that_ends_just_after_has_given_its_lease_back(
    server: Server, pool: Pool, end: str
) -> None:
    """The system has got the release: even SIGKILL does not take it back."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    program = (
        "import os, sys\n"
        "from agent_sdk import LeaseClient, Store\n"
        f"client = LeaseClient(Store({server.url!r}), pool={pool.keys.pool_name!r},"
        " hostname='h1')\n"
        "lease = client.acquire('me', memory_mb=100, ttl_s=0)\n"
        f"client.release(lease, wait=False)\n{end}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    until(lambda: living(pool) == set(), 5)
    assert pool.stats()["released"] == 1


@pytest.mark.parametrize("caller", ["async"], indirect=True)
def test_release_of_a_task_that_is_cancelled_at_once_happens(caller: Caller, pool: Pool) -> None:
    """It was handed over before the task could be cancelled; the loop ends before it is sent."""

    async def ends() -> None:
        await caller.client.release(lease)
        task: Any = asyncio.current_task()
        task.cancel()
        await asyncio.sleep(0)

    lease = caller.acquire("me", memory_mb=100)
    assert caller.loop is not None
    with pytest.raises(asyncio.CancelledError):
        caller.loop.run_until_complete(ends())
    until(lambda: living(pool) == set(), 5)
    until(lambda: settled(caller.client))


def test_signal_handler_releases_in_the_middle_of_a_release(
    client: LeaseClient, pool: Pool
) -> None:
    """A handler of the program that uses the same client, at moments some 20 µs apart."""

    def handler(*_: object) -> None:
        if armed:
            client.release(client.acquire("handler", memory_mb=1))

    armed, before = False, signal.signal(signal.SIGALRM, handler)
    try:
        for delay_us in range(30, 1500, 40):
            armed = True
            signal.setitimer(signal.ITIMER_REAL, delay_us / 1e6)
            client.release(client.acquire("me", memory_mb=1))
            time.sleep(0.002)
            armed = False
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: living(pool) == set())
    until(lambda: settled(client))
