"""A call interrupted between its command and its answer: no later call reads that answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis._parsers.resp2 import _AsyncRESP2Parser, _RESP2Parser
from redis._parsers.resp3 import _AsyncRESP3Parser, _RESP3Parser

from agent_sdk import AsyncLeaseClient, LeaseClient, LeaseLost, Store
from agent_sdk.renewal.redis_transport import RedisTransport
from agent_sdk.scripts import library as functions
from tests.faults.proxy import Proxy
from tests.pools import device
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tests.pools import Pool
    from tests.servers import Server


class TimeLimit(Exception):
    """Error that a signal handler of the program raises: an ordinary exception."""


@pytest.fixture(params=["", "?protocol=2", "?protocol=3", "unix"])
def client(request: pytest.FixtureRequest, server: Server, pool: Pool) -> Iterator[LeaseClient]:
    """Over each protocol and transport, with two devices."""
    pool.report((device("D0"), device("D1", index=1)), deadline_ms=86_400_000)
    url = server.socket_url if request.param == "unix" else server.url + request.param
    with LeaseClient(Store(url), pool=pool.keys.pool_name, hostname="h1") as client:
        client.pool()
        yield client
        for lease in client.leases():
            with contextlib.suppress(LeaseLost):  # the renewing thread gives it back meanwhile
                client.revoke(lease.token, force=True)


def interrupted(redis: redis.Redis, call: Callable[[], object], by: type[BaseException]) -> None:
    """Make a call; a signal comes when its commands are sent and no answer is read."""

    def handler(*_: object) -> None:
        raise by

    def struck(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(connection: Any, *args: Any, **options: Any) -> Any:
            connecting = connection.clean or not connection._greeted
            if connecting or threading.current_thread() is not threading.main_thread():
                return real(connection, *args, **options)
            patched.undo()
            signal.raise_signal(signal.SIGUSR1)
            return real(connection, *args, **options)

        return read

    kind: Any = redis.connection_pool.connection_class
    patched, before = pytest.MonkeyPatch(), signal.signal(signal.SIGUSR1, handler)
    for name in ("read_response", "_replies"):
        patched.setattr(kind, name, struck(getattr(kind, name)))
    try:
        with pytest.raises(by):
            call()
    finally:
        patched.undo()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("by", [KeyboardInterrupt, SystemExit, TimeLimit])
def test_acquire_after_an_interrupted_one_gets_a_lease_of_its_own(
    client: LeaseClient, by: type[BaseException]
) -> None:
    """The lease that the SDK shows is the one that the pool has under that token."""
    interrupted(client.redis, lambda: client.acquire("me", exclusive=True, memory_mb=900), by)
    lease = client.acquire("me", exclusive=True, memory_mb=900)
    found: Any = client.lookup(lease.token)
    assert (found.fence, [uuid for uuid, _ in found.devices]) == (
        lease.fence,
        [held.uuid for held in lease.devices],
    )


def test_renew_after_an_interrupted_one_does_not_believe_its_answer(client: LeaseClient) -> None:
    """The answer to the renewal of one lease is not taken for that of another, which is over."""
    one, other = client.acquire("one", memory_mb=1), client.acquire("other", memory_mb=1)
    interrupted(client.redis, lambda: client.renew(one), KeyboardInterrupt)
    client.revoke(other.token, force=True)
    with pytest.raises(LeaseLost):
        client.renew(other)


def test_functions_load_that_is_interrupted_leaves_no_answer(client: LeaseClient) -> None:
    """Also what is sent beside verbs and readings."""
    interrupted(client.redis, lambda: functions.load(client.redis), KeyboardInterrupt)
    assert client.redis.echo("mine") == "mine"


def test_script_of_the_programs_own_is_answered_as_it_is(client: LeaseClient) -> None:
    """Whatever its first argument looks like, also in a pipeline."""
    script = "return { ARGV[1], 'own' }"
    for said in ("1 abc", "hello world"):
        assert client.redis.eval(script, 1, client.keys.pool, said) == [said, "own"]
        pipe = client.redis.pipeline(transaction=False)
        pipe.evalsha(client.redis.script_load(script), 1, client.keys.pool, said)
        assert pipe.execute() == [[said, "own"]]


def _interrupt_reads(pipes: Any, monkeypatch: pytest.MonkeyPatch, after: int = 1) -> None:
    """Let SIGINT come when so many answers of a pipeline were read and the others were not."""
    real, seen = pipes.parse_response, iter(range(1_000_000))

    def parse(self: Any, *args: Any, **options: Any) -> Any:
        if next(seen) == after:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(pipes, "parse_response", parse)


def test_reading_after_an_interrupted_one_reads_its_own(
    client: LeaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline is interrupted when one of its answers has been read."""
    lease = client.acquire("me", memory_mb=7)
    _interrupt_reads(type(client.redis.pipeline()), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        client.devices()
    assert [one.token for one in client.leases()] == [lease.token]
    assert len(client.devices()) == 2


def test_keepers_link_after_an_interruption_takes_each_answer_for_its_lease(
    client: LeaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline of the renewing thread, broken off before its answer is read."""
    leases = [client.acquire("me", memory_mb=1, ttl_s=ttl_s) for ttl_s in (10, 20, 30)]
    link = RedisTransport(client.store.connect, client.keys)
    _interrupt_reads(type(client.redis.pipeline()), monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        list(link.renew(leases))
    left = [round(renewal.remaining_ms / 1000) for renewal in link.renew(leases[::-1])]
    assert left == [30, 20, 10]
    link.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_greeting_that_is_interrupted_is_made_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """A connection interrupted between HELLO and SELECT must not go on in another database."""
    redis = Store(f"{server.url}/1?protocol={protocol}").connect()
    kind: Any = redis.connection_pool.connection_class
    real = kind.send_command

    def send(self: Any, *args: Any, **options: Any) -> None:
        if args[0] == "SELECT":
            monkeypatch.undo()
            raise KeyboardInterrupt
        real(self, *args, **options)

    monkeypatch.setattr(kind, "send_command", send)
    with pytest.raises(KeyboardInterrupt):
        redis.ping()
    redis.set("where", "1")
    with server.connect() as zero:
        assert zero.get("where") is None
    redis.delete("where")
    redis.close()


def test_callers_that_are_interrupted_leak_no_connection(client: LeaseClient) -> None:
    """However many calls were interrupted, the client has one connection."""
    for _ in range(120):  # more than redis-py's limit of connections
        interrupted(client.redis, lambda: client.acquire("me", memory_mb=1), KeyboardInterrupt)
    client.pool()
    pool: Any = client.redis.connection_pool
    assert (len(pool._in_use_connections), len(pool._available_connections)) == (0, 1)


@pytest.mark.parametrize("pause_s", [0, 0.05])
def test_call_on_a_connection_that_the_server_has_closed_is_made_on_another(
    client: LeaseClient, pool: Pool, pause_s: float
) -> None:
    """At once after the call before and a while after: it succeeds, and there is one lease."""
    for _ in range(5):
        client.release(client.acquire("me", memory_mb=1))
        pool.redis.client_kill_filter(_id=str(client.redis.client_id()))
        time.sleep(pause_s)
        lease = client.acquire("me", memory_mb=1)
        assert [one.token for one in client.leases()] == [lease.token]
        assert client.release(lease)
        assert client.redis.ping()


def test_threads_share_no_connection_at_once_and_leave_no_more_than_they_are(
    client: LeaseClient,
) -> None:
    """Each call has its own lease; afterwards as many connections are idle as threads called."""
    found: list[set[str]] = []

    def work() -> None:
        leases = [client.acquire("me", memory_mb=1) for _ in range(20)]
        found.append({lease.token for lease in leases})
        assert all(client.release(lease) for lease in leases)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set().union(*found)) == 8 * 20
    connections: Any = client.redis.connection_pool
    assert len(connections._in_use_connections) == 0
    assert 1 <= len(connections._available_connections) <= 8 + 1


PARSERS = {2: (_RESP2Parser, _AsyncRESP2Parser), 3: (_RESP3Parser, _AsyncRESP3Parser)}
"""Parsers of redis-py by protocol, blocking and for asyncio."""


@pytest.mark.parametrize("protocol", [2, 3])
async def test_clients_without_hiredis_lease_all_the_same(
    server: Server, pool: Pool, protocol: int
) -> None:
    """The SDK needs redis-py alone: its own parsers read every reply, also an error."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    store = Store(f"{server.url}?protocol={protocol}")
    blocking = LeaseClient(store, pool=pool.keys.pool_name, hostname="h1")
    tasks = AsyncLeaseClient(store, pool=pool.keys.pool_name, hostname="h1")
    blocking.redis.connection_pool.connection_kwargs["parser_class"] = PARSERS[protocol][0]
    tasks.redis.connection_pool.connection_kwargs["parser_class"] = PARSERS[protocol][1]
    functions.delete(pool.redis)  # the first call is answered with an error
    lease = blocking.acquire("me", memory_mb=1)
    others = await asyncio.gather(*(tasks.acquire("me", memory_mb=1) for _ in range(5)))
    assert {one.token for one in blocking.leases()} == {one.token for one in (lease, *others)}
    assert blocking.release(lease)
    assert await asyncio.gather(*map(tasks.release, others)) == [True] * 5
    blocking.close()
    await tasks.close()


class Stale:
    """Between client and server: answers one call with the reply to an earlier one."""

    def __init__(self) -> None:
        self.keep = self.repeat = False
        self._old = b""

    def passes(self, chunk: bytes) -> bool:
        if self.keep:
            self._old, self.keep = chunk, False
        return True

    def answers(self, chunk: bytes) -> bytes | None:
        if not self.repeat or (b"FCALL" not in chunk and b"EVALSHA" not in chunk):
            return None
        self.repeat = False
        return self._old


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_reply_to_another_call_is_no_answer_and_the_call_is_repeated(
    server: Server, pool: Pool, kind: str
) -> None:
    """Each reply carries the mark of its call: one with another mark closes the connection."""
    pool.report((device("D0"), device("D1", index=1)), deadline_ms=86_400_000)
    stale = Stale()
    with Proxy(server.port, stale.passes, stale.answers) as proxy, server.connect() as redis:
        functions.load_own(redis)
        async with AsyncLeaseClient(
            Store(proxy.url), pool=pool.keys.pool_name, hostname="h1"
        ) as tasks:
            blocking = LeaseClient(Store(proxy.url), pool=pool.keys.pool_name, hostname="h1")
            if kind == "sync":

                async def acquire(agent: str) -> Any:
                    return await asyncio.to_thread(
                        blocking.acquire, agent, exclusive=True, memory_mb=900
                    )

            else:

                async def acquire(agent: str) -> Any:
                    return await tasks.acquire(agent, exclusive=True, memory_mb=900)

            await tasks.pool()
            blocking.pool()
            stale.keep = True
            one = await acquire("one")
            stale.repeat = True
            other = await acquire("other")
            assert not stale.repeat
            assert one.fence != other.fence
            assert {one.devices[0].uuid, other.devices[0].uuid} == {"D0", "D1"}
            assert pool.stats()["granted"] == 2
            blocking.close()


def blocked(pool: Pool) -> set[str]:
    """Ids of the server's connections that wait in a blocking command."""
    return {each["id"] for each in pool.redis.client_list() if "b" in each["flags"]}


async def test_task_cancelled_in_a_reading_of_its_own_leaves_no_answer(
    server: Server, pool: Pool
) -> None:
    """The connections of `client.redis`, which readers of their own and the inbox use."""
    others = blocked(pool)
    redis = Store(server.url).connect_async()
    await redis.set(f"{pool.keys.base}:mine", "mine")
    for turns in range(12):
        task = asyncio.create_task(redis.blpop([f"{pool.keys.base}:none"], 30))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await redis.get(f"{pool.keys.base}:mine") == "mine"
    await asyncio.to_thread(until, lambda: blocked(pool) <= others)  # the loop closes sockets
    await redis.delete(f"{pool.keys.base}:mine")
    await redis.aclose()


def test_interrupt_that_strikes_the_multiplexer_lets_no_call_wait_for_ever(
    server: Server, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in its own task, in a loop that goes on as a notebook's does: callers ask again."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    loop = asyncio.new_event_loop()
    client = AsyncLeaseClient(Store(server.url), pool=pool.keys.pool_name, hostname="h1")
    loop.run_until_complete(client.pool())
    kind: Any = client.redis.connection_pool.connection_class
    real = kind.read_more

    async def read(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "read_more", read)
    calls = [loop.create_task(client.acquire(f"a{n}", memory_mb=5)) for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait(calls))
    assert kind.read_more == real
    loop.run_until_complete(asyncio.wait(calls, timeout=10))
    granted = {call.result().agent: call.result() for call in calls}
    assert sorted(granted) == ["a0", "a1", "a2"]
    leases = loop.run_until_complete(client.leases())
    assert {lease.token: lease.agent for lease in leases} == {
        lease.token: agent for agent, lease in granted.items()
    }
    for lease in granted.values():
        loop.run_until_complete(client.release(lease))
    loop.run_until_complete(client.close())
    loop.close()
