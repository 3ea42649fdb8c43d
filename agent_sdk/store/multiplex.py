"""Multiplexer: one connection for all tasks of an event loop; calls that meet are sent together.

A pool gives each of 30 tasks a connection, and each call its own write, read and wake-up of the
loop. Here a call waits in a queue. A sender, which lives while there is something to send, starts
at the next turn of the loop, so tasks that woke in the same turn share one write. It does not wait
for answers: a listener settles each call as its answer comes, in the order they were sent, so that
the server works on some while others are written and read.

Calls that travel together are no transaction: each gets its own answer or error, and other clients'
commands may come between. Neither task is a caller's, so a cancelled caller cannot leave half an
answer on the connection: its answer is dropped, and a call not yet sent never is. When the
connection fails, every sent call gets the error, and none in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's name for it
    DataError,
    RedisError,
    ResponseError,
)

from agent_sdk.fork import leave_to_parent, renew_in_child
from agent_sdk.store.connect_errors import mark_unsent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from agent_sdk.scripts.packed import Packed

Command: TypeAlias = tuple[str | int, ...]

LONGEST_BATCH = 256
"""Most commands in one write. More would gain nothing, and take as long to pack as to run."""

NOT_SENT = "closed like a connection that is still connecting: nothing was sent"
CLOSED = "another event loop or thread closed this client"
CUT_OFF = "the event loop was interrupted while the answer was awaited"


@dataclass(frozen=True, slots=True)
class _Ask:
    """Wait of one caller for its answers; done early when the caller was cancelled.

    Attributes:
        commands: the commands.
        packed: in their place, verbs' calls as bytes.
    """

    commands: Sequence[Command]
    packed: Sequence[Packed]
    answers: asyncio.Future[list[Any]]

    def __len__(self) -> int:
        return len(self.commands) or len(self.packed)


class Multiplexer:
    """Sender of many tasks' commands over one connection of a client.

    It connects at the first call. Another event loop may use it once the former has ended.

    Args:
        client: its pool gives the connection, its options the timeouts.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forget()
        renew_in_child(self)

    def reset(self) -> None:
        """Forget everything: a forked child connects anew and closes nothing of its parent's."""
        if self._loop is not None:
            pool = self._client.connection_pool
            leave_to_parent((vars(self).copy(), vars(pool).copy()))
            pool.reset()  # type: ignore[no-untyped-call] # redis-py's
            self._loop = None
            self._forget()

    def _forget(self) -> None:
        self._queue: deque[_Ask] = deque()
        self._away: deque[_Ask] = deque()
        self._connection: AbstractConnection | None = None
        self._sender: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def execute(self, *command: str | int) -> Any:
        """Return the answer to one command.

        Raises:
            RedisError: as the client's `execute_command`; the words are the server's own.
            RuntimeError: another event loop uses this.
        """
        return (await self._enqueue((command,), ()))[0]

    def ask(self, packed: Sequence[Packed]) -> asyncio.Future[list[Any]]:
        """Return what will be the reply to each call, or the server's error.

        Raises:
            RedisError: no reply came.
            RuntimeError: another event loop uses this.
        """
        return self._enqueue((), packed)

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to commands that are sent side by side.

        Raises:
            RedisError: the first among the answers; the other commands were executed.
            RuntimeError: another event loop uses this.
        """
        return await self._enqueue(commands, ()) if commands else []

    async def close(self) -> None:
        """Fail unsent calls, wait for the sent ones at most a timeout long, and disconnect.

        A later call connects anew. In another loop than its own it does not wait.
        """
        if self._loop not in {None, asyncio.get_running_loop()}:
            self.let_go()
            return
        self._fail_queue(_not_sent())
        if self._away:
            await asyncio.wait([ask.answers for ask in self._away])
        await self._client.aclose()

    def let_go(self) -> None:
        """Make its loop disconnect soon; from any thread, also while the loop runs in another."""
        if self._loop is not None:
            # the loop is closed: its sockets close as they are collected
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        """Disconnect without a task, which the end of the loop would cancel."""
        self._fail_queue(_not_sent())
        _fail(self._away, ConnectionError(CLOSED))
        self._away.clear()
        if self._connection is not None:
            self._connection.hang_up()  # type: ignore[attr-defined] # of `AsyncCounting`

    def _enqueue(
        self, commands: Sequence[Command], calls: Sequence[Packed]
    ) -> asyncio.Future[list[Any]]:
        loop = running_loop()
        if loop is not self._loop:
            self._bind(loop)
        ask = _Ask(commands, calls, loop.create_future())
        self._queue.append(ask)
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send_all())
            self._sender.add_done_callback(self._after)
        return ask.answers

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            if self._loop.is_running():
                raise RuntimeError("another event loop uses this client: one client per loop")
            self._client.connection_pool.reset()  # type: ignore[no-untyped-call] # redis-py's
        self._loop = loop
        self._forget()

    async def _send_all(self) -> None:
        while self._queue:
            await self._leave_wrong_server()
            batch = self._next_batch()
            if not batch:
                break
            try:
                await self._send(batch)
            except Exception as error:  # noqa: BLE001 - any error must reach the callers
                await self._break(error)
                if self._listener is not None and self._listening:
                    # It must not live on to read from, or to break, the next connection.
                    await asyncio.wait({self._listener})
            # Let the callers just answered ask again: else the tasks split into two crowds that
            # take turns, each batch half as long.
            await asyncio.sleep(0)

    async def _leave_wrong_server(self) -> None:
        """Connect anew if an answer named another primary; other answers are still on their way."""
        connection = self._connection
        if connection is None or not connection.should_reconnect():  # type: ignore[no-untyped-call] # redis-py's
            return
        if self._listener is not None:
            await asyncio.wait({self._listener})
        await connection.disconnect(nowait=True)

    def _next_batch(self) -> list[_Ask]:
        batch: list[_Ask] = []
        size = 0
        while self._queue:
            ask = self._queue[0]
            if not ask.answers.done():
                size += len(ask)
                if batch and size > LONGEST_BATCH:
                    break
                batch.append(ask)
                self._away.append(ask)  # first: an interrupt here must lose no call
            self._queue.popleft()
        return batch

    async def _send(self, batch: list[_Ask]) -> None:
        """Write a batch, and make sure that a listener runs."""
        listening, pool = self._listening, self._client.connection_pool
        if self._connection is None:
            self._connection = await pool.get_connection()  # type: ignore[no-untyped-call] # redis-py's
        elif not listening:  # it was idle: the server may have closed it meanwhile
            await pool.ensure_connection(self._connection)
            await self._connection.check_health()  # type: ignore[no-untyped-call] # redis-py's
        connection = self._connection
        packed: list[bytes] = []
        for ask in batch:
            try:
                if ask.packed:
                    connection.expect([mark for _, mark in ask.packed])  # type: ignore[union-attr] # of `AsyncCounting`
                    packed += [data for data, _ in ask.packed]
                else:
                    packed += connection.pack_commands(ask.commands)
            except DataError as error:  # one caller's argument cannot be encoded
                self._away.remove(ask)
                _fail((ask,), error)
        if packed:
            # The check would read the answer to a PING of its own beside the listener.
            await connection.send_packed_command(packed, check_health=False)
        if not listening and self._away:
            self._listener = asyncio.create_task(self._listen(connection))
            self._listener.add_done_callback(self._after)

    @property
    def _listening(self) -> bool:
        return self._listener is not None and not self._listener.done()

    async def _listen(self, connection: AbstractConnection) -> None:
        """Settle the sent calls as the answers come, in the order of sending."""
        try:
            while self._away:
                ask = self._away[0]
                if ask.packed:
                    replies = [await _reply(connection, mark) for _, mark in ask.packed]
                    if not ask.answers.done():
                        ask.answers.set_result(replies)
                else:
                    _settle(
                        ask,
                        [
                            await _answer(self._client, connection, name)
                            for name, *_ in ask.commands
                        ],
                    )
                self._away.popleft()
        except Exception as error:  # noqa: BLE001 - any error must reach the callers
            await self._break(error)

    async def _break(self, error: Exception) -> None:
        """Tell all waiting callers of a failed connection, and never use it as it is."""
        _fail(self._away, error)
        self._away.clear()
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    def _after(self, task: asyncio.Task[None]) -> None:
        """Tell all callers when a task ended early.

        Every task of the loop was cancelled, or an interrupt struck in this one. The
        connection is owed answers, so it is not used again as it is; see `exchange`.
        """
        broken = task.cancelled() or task.exception() is not None
        if broken and task in {self._sender, self._listener}:
            _fail(self._away, ConnectionError(CUT_OFF))
            self._away.clear()
            self._fail_queue(_not_sent())

    def _fail_queue(self, error: Exception) -> None:
        _fail(self._queue, error)
        self._queue.clear()


def _not_sent() -> ConnectionError:
    error = ConnectionError(NOT_SENT)
    mark_unsent(error)
    return error


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of the caller.

    Raises:
        RuntimeError: there is none; the message says what to do.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "no event loop runs here: call this from a coroutine; a child that was forked from a "
            "running loop has to run one of its own first (asyncio.run)"
        ) from error


async def _reply(connection: Any, mark: str) -> Any:
    """Return the reply with a mark, or the server's error."""
    if not connection.has_hiredis:
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error.with_traceback(None)
    while (reply := connection.at_hand(mark)) is NOT_ENOUGH_DATA:
        await connection.read_more()
    return reply


async def _answer(client: Redis, connection: AbstractConnection, name: str | int) -> Any:
    """Return one command's answer, decoded as the client does; server errors are answers."""
    try:
        return await client.parse_response(connection, str(name))  # type: ignore[arg-type] # any kind
    except ResponseError as error:
        return error.with_traceback(None)  # redis-py's frame keeps the error, and it the client


def _settle(ask: _Ask, answers: list[Any]) -> None:
    error = next((answer for answer in answers if isinstance(answer, RedisError)), None)
    if error is not None:
        _fail((ask,), error)
    elif not ask.answers.done():
        ask.answers.set_result(answers)


def _fail(asks: Iterable[_Ask], error: Exception) -> None:
    for ask in asks:
        if not ask.answers.done():
            ask.answers.set_exception(error)
