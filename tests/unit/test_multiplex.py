"""Many tasks, one connection: who gets which answer, and what a failure touches."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's name for it
    DataError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from agent_sdk.store.multiplex import LONGEST_BATCH, Multiplexer
from agent_sdk.store.store import Store
from tests.faults.proxy import Proxy
from tests.servers import free_port, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tests.servers import Server


@asynccontextmanager
async def multiplexer(url: str, timeout_s: float = 1.0) -> AsyncIterator[Multiplexer]:
    client: Redis = Store(url, timeout_s).connect_async()
    try:
        yield Multiplexer(client)
    finally:
        await client.aclose()


def clients(server: Server) -> list[str]:
    """The ids of the connections, but for the one that asks."""
    with server.connect() as client:
        me = client.client_id()
        return [entry["id"] for entry in client.client_list() if int(entry["id"]) != me]


def calls(server: Server, command: str) -> int:
    with server.connect() as client:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_execute_by_100_tasks_uses_one_connection(own: Server):
    """However many tasks call at once, the server sees one connection."""
    async with multiplexer(own.url) as many:
        await asyncio.gather(*(many.execute("ECHO", n) for n in range(100)))
        assert len(clients(own)) == 1


async def test_execute_interleaved_at_random_gives_each_caller_its_own_answer(server: Server):
    """None of 1,000 calls of all shapes and at all times gets another's answer."""
    chance = random.Random(7)

    async def ask(many: Multiplexer, name: int) -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        match chance.randrange(3):
            case 0:
                assert await many.execute("ECHO", name) == str(name)
            case 1:
                words = [f"{name}.{n}" for n in range(chance.randrange(5))]
                answers = await many.execute_many(tuple(("ECHO", word) for word in words))
                assert answers == words
            case _:
                with pytest.raises(ResponseError, match=f"^mine {name}$"):
                    await many.execute("EVAL", f"return redis.error_reply('mine {name}')", 0)

    async with multiplexer(server.url) as many:
        await asyncio.gather(*(ask(many, name) for name in range(1000)))


async def test_execute_error_touches_no_other_caller(server: Server):
    """An error keeps its class and the server's words, and reaches its caller alone."""
    async with multiplexer(server.url) as many:
        before, error, after = await asyncio.gather(
            many.execute("ECHO", "before"),
            many.execute("EVALSHA", "0" * 40, 0),
            many.execute("ECHO", "after"),
            return_exceptions=True,
        )
    assert (before, after) == ("before", "after")
    assert type(error) is NoScriptError
    assert str(error).startswith("No matching script")


async def test_execute_unsendable_argument_touches_no_other_caller(server: Server):
    """An argument that cannot be written down spoils its own call, not the batch."""
    async with multiplexer(server.url) as many:
        before, error, after = await asyncio.gather(
            many.execute("ECHO", "before"),
            many.execute("ECHO", None),  # type: ignore[arg-type] # what is refused is the point
            many.execute("ECHO", "after"),
            return_exceptions=True,
        )
    assert (before, after, type(error)) == ("before", "after", DataError)


async def test_execute_many_raises_the_first_error_after_all_commands(server: Server):
    """One bad command among several is raised plainly; the others were executed."""
    async with multiplexer(server.url) as many:
        with pytest.raises(ResponseError, match=r"^unknown command 'NO1'"):
            await many.execute_many((("NO1",), ("SET", "many", "x"), ("NO2",)))
        assert await many.execute("GET", "many") == "x"
        assert await many.execute_many(()) == []


async def test_execute_many_longer_than_a_batch_is_answered_in_order(server: Server):
    """Batches have a longest length, calls have none."""
    async with multiplexer(server.url) as many:
        numbers = [str(n) for n in range(LONGEST_BATCH * 2 + 1)]
        side, long = await asyncio.gather(
            asyncio.gather(*(many.execute("ECHO", n) for n in numbers)),
            many.execute_many(tuple(("ECHO", n) for n in numbers)),
        )
    assert side == long == numbers


async def test_execute_cancelled_in_flight_leaves_the_others_right(own: Server):
    """A caller that goes away while the batch is under way takes nothing from the others."""
    async with multiplexer(own.url) as many:
        await many.execute("CLIENT", "PAUSE", 100, "ALL")
        tasks = [asyncio.create_task(many.execute("ECHO", n)) for n in range(30)]
        await asyncio.sleep(0.03)
        for task in tasks[::3]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for n, answer in enumerate(answers):
            assert answer == str(n) if n % 3 else isinstance(answer, asyncio.CancelledError)
        assert await many.execute("ECHO", "next") == "next"
        assert len(clients(own)) == 1


async def test_execute_cancelled_in_the_queue_is_never_sent(own: Server):
    """A call that is given up before its turn reaches no server."""
    async with multiplexer(own.url) as many:
        await many.execute("CLIENT", "PAUSE", 100, "ALL")
        first = asyncio.create_task(many.execute("ECHO", "first"))
        await asyncio.sleep(0.03)
        queued = asyncio.create_task(many.execute("LLEN", "queued"))
        alone = asyncio.create_task(many.execute("ECHO", "alone"))
        await asyncio.sleep(0)
        queued.cancel()
        assert await asyncio.gather(first, alone) == ["first", "alone"]
    assert calls(own, "llen") == 0


async def test_execute_connection_killed_answers_or_fails_every_caller(own: Server):
    """Every caller on a connection that dies gets an answer or an error; the next call works."""
    async with multiplexer(own.url) as many:

        async def ask(n: int) -> int:
            failed = 0
            for turn in range(20):
                try:
                    assert await many.execute("ECHO", f"{n}.{turn}") == f"{n}.{turn}"
                except ConnectionError:
                    failed += 1
            return failed

        async def kill() -> int:
            with own.connect() as client:
                killed = 0
                for _ in range(5):
                    killed += int(client.client_kill_filter(_type="normal", skipme=True))
                    await asyncio.sleep(0.002)
                return killed

        *failed, killed = await asyncio.gather(*(ask(n) for n in range(50)), kill())
        assert killed > 0
        assert sum(failed) <= 50 * killed
        assert await many.execute("ECHO", "next") == "next"


async def test_execute_write_fails_while_answers_are_awaited_mixes_up_none(
    own: Server, monkeypatch: pytest.MonkeyPatch
):
    # The answers take a moment, so that a write fails while the listener waits for earlier ones.
    real = AbstractConnection._send_packed_command
    rng = random.Random(5)

    async def sometimes_broken(self: AbstractConnection, packed: list[bytes]) -> None:
        if rng.random() < 0.05:
            raise BrokenPipeError(32, "Broken pipe")
        await real(self, packed)

    right: list[str] = []

    async def task(number: int, connection: Multiplexer) -> None:
        for turn in range(60):
            word = f"{number}.{turn}." + "x" * rng.choice((1, 100, 20_000))
            try:
                answer = await asyncio.wait_for(connection.execute("ECHO", word), 5)
                assert answer == word, "another caller's answer"
                right.append(word)
            except (ConnectionError, OSError):
                pass
            await asyncio.sleep(rng.random() * 0.004)  # else all ask in the same turn

    def later(_: bytes) -> bool:
        time.sleep(0.004)
        return True

    with Proxy(own.port, later) as proxy:
        async with multiplexer(proxy.url) as connection:
            await connection.execute("PING")
            monkeypatch.setattr(AbstractConnection, "_send_packed_command", sometimes_broken)
            await asyncio.gather(*(task(number, connection) for number in range(40)))
            monkeypatch.undo()
    assert len(right) > 1000


async def test_execute_timeout_fails_what_is_away_and_nothing_after(own: Server):
    """Calls without an answer in time fail together; the next calls take a new connection."""
    async with multiplexer(own.url, timeout_s=0.1) as many:
        await many.execute("CLIENT", "PAUSE", 150, "ALL")
        away = [asyncio.create_task(many.execute("ECHO", n)) for n in range(3)]
        outcome = await asyncio.gather(*away, return_exceptions=True)
        assert {type(error) for error in outcome} == {RedisTimeout}
        await asyncio.sleep(0.1)
        assert await asyncio.gather(*(many.execute("ECHO", n) for n in range(3))) == ["0", "1", "2"]


async def test_execute_by_tasks_that_never_pause_leaves_a_server_that_is_a_replica(own: Server):
    """READONLY: the answers on their way come in, and what is asked then goes to the new one."""
    right: list[int] = []

    async def task(number: int, many: Multiplexer, told: list[Exception]) -> None:
        while True:
            try:
                await many.execute("SET", f"k{number}", number)
            except ReadOnlyError as error:
                told.append(error)
            else:
                if told:
                    right.append(number)
                    return
            assert await many.execute("ECHO", number) == str(number)

    with running() as old, old.connect() as admin, Proxy(old.port) as name:
        async with multiplexer(name.url) as many, asyncio.timeout(10), asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(task(number, many, []))
            await asyncio.sleep(0.1)
            name.port = own.port
            admin.execute_command("REPLICAOF", "127.0.0.1", own.port)
    assert sorted(right) == list(range(20))


async def test_execute_never_connected_says_connecting():
    """The error for a server that was never there says so: nothing can have been executed."""
    many = Multiplexer(Store(f"redis://127.0.0.1:{free_port()}").connect_async())
    errors = await asyncio.gather(
        *(many.execute("ECHO", n) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(e, ConnectionError) and "connecting" in str(e) for e in errors)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_execute_in_a_second_event_loop_works(server: Server):
    """A client left open when its loop ended serves the next loop."""
    client = Store(server.url).connect_async()
    many = Multiplexer(client)

    async def ask() -> list[str]:
        return await asyncio.gather(*(many.execute("ECHO", n) for n in range(3)))

    async def ask_and_close() -> list[str]:
        answers = await ask()
        await client.aclose()
        return answers

    outcome = [asyncio.run(ask()), asyncio.run(ask()), asyncio.run(ask_and_close())]
    assert outcome == [["0", "1", "2"]] * 3
    gc.collect()  # what the dead loops left open warns here and not in another test


async def test_execute_in_two_event_loops_at_once_is_refused(server: Server):
    """A second loop in another thread is told so, instead of getting wrong answers."""
    async with multiplexer(server.url) as many:
        await many.execute("PING")
        with pytest.raises(RuntimeError, match="one client per loop"):
            await asyncio.to_thread(asyncio.run, many.execute("PING"))


async def test_close_answers_what_is_away_and_fails_what_is_queued(own: Server):
    """Closing lets the batch under way end; what waits behind it is told that it was not sent."""
    async with multiplexer(own.url) as many:
        await many.execute("CLIENT", "PAUSE", 100, "ALL")
        first = asyncio.create_task(many.execute("ECHO", "first"))
        await asyncio.sleep(0.03)
        queued = asyncio.create_task(many.execute("STRLEN", "queued"))
        await asyncio.sleep(0)
        await many.close()
        assert first.done()
        assert await first == "first"
        with pytest.raises(ConnectionError, match="connecting"):
            await queued
        assert calls(own, "strlen") == 0


async def test_execute_sender_cancelled_from_outside_leaves_nobody_waiting(own: Server):
    """Whoever cancels all tasks of the loop makes callers fail, not hang."""
    async with multiplexer(own.url) as many:
        await many.execute("CLIENT", "PAUSE", 100, "ALL")
        first = asyncio.create_task(many.execute("ECHO", "first"))
        await asyncio.sleep(0.03)
        queued = asyncio.create_task(many.execute("ECHO", "queued"))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), first, queued}:
            task.cancel()
        outcome = await asyncio.gather(first, queued, return_exceptions=True)
        assert [type(error) for error in outcome] == [ConnectionError, ConnectionError]
        assert await many.execute("ECHO", "next") == "next"


async def test_execute_alone_leaves_no_task_behind(server: Server):
    """No task lives while nothing is to be sent."""
    async with multiplexer(server.url) as many:
        before = asyncio.all_tasks()
        await many.execute("PING")
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


async def test_health_checks_do_not_read_beside_the_listener(own: Server):
    """While answers are late, a check that is due is left out; an idle connection gets it."""
    async with multiplexer(f"{own.url}?health_check_interval=0.05&socket_timeout=10") as many:
        await many.execute("PING")
        before = calls(own, "ping")
        await many.execute("CLIENT", "PAUSE", 300, "ALL")
        away = [asyncio.create_task(many.execute("ECHO", n)) for n in range(3)]
        for n in range(3, 8):
            await asyncio.sleep(0.06)
            away.append(asyncio.create_task(many.execute("ECHO", n)))
        assert await asyncio.gather(*away) == [str(n) for n in range(8)]
        await asyncio.sleep(0.1)
        await many.execute("ECHO", "idle before")
        assert calls(own, "ping") > before
