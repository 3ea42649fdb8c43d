"""One connection for all tasks of an event loop: calls that meet are sent as one pipeline.

A pool gives each of 30 tasks a connection, and each call its own write, read and wake-up of the
loop. Here a call waits in a queue. A sender, which lives while there is something to send, starts
at the next turn of the loop, so tasks that woke in the same turn share its first batch; what comes
while a batch is away makes up the next. A lone call is a batch of one and waits for nobody.

A batch is no transaction: each call gets its own answer or error, and other clients' commands may
come between. It travels in the sender's task and not in a caller's, so a cancelled caller cannot
leave half an answer on the connection: its answer is dropped, and a call not yet sent never is.
When the connection fails, every call of that batch hears of it, and none behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, DataError  # noqa: A004 - redis-py's name for it

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import RedisCluster

Command: TypeAlias = tuple[str | int, ...]

LONGEST_BATCH = 256
"""Commands. More would gain nothing, and make the first caller wait for the last one's answer."""

# `patience` knows by the word "connecting" that nothing was sent.
NOT_SENT = "closed like a connection that is still connecting: nothing was sent"
CUT_OFF = "the event loop ended while the answer was awaited"


@dataclass(frozen=True, slots=True)
class _Ask:
    """What one caller waits for. It is done early when the caller was cancelled."""

    commands: Sequence[Command]
    answers: asyncio.Future[list[Any]]


class Multiplexer:
    """Sends the commands of many tasks over one connection of a client.

    Connects at the first call. Another event loop may use it once the former has ended (a
    `RedisCluster` must be closed in between: only `Redis` can forget connections of a dead loop).

    Args:
        client: its pool gives the connection, its options the timeouts.
    """

    def __init__(self, client: Redis | RedisCluster) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Ask] = deque()
        self._batch: list[_Ask] = []
        self._sender: asyncio.Task[None] | None = None

    async def execute(self, *command: str | int) -> Any:
        """The answer to one command.

        Raises:
            RedisError: as the client's `execute_command`; the words are the server's own.
            RuntimeError: another event loop uses this.
        """
        return (await self._enqueue((command,)))[0]

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands that are sent side by side.

        Raises:
            RedisError: the first among the answers; the other commands were executed.
            RuntimeError: another event loop uses this.
        """
        return await self._enqueue(commands) if commands else []

    async def close(self) -> None:
        """Fail what was not sent, then wait for the batch that is away, at most a timeout long.

        The client stays open; a later call works, as it does on a closed client of redis-py.
        """
        if self._loop is asyncio.get_running_loop():
            self._fail_queue(ConnectionError(NOT_SENT))
            if self._batch:
                await asyncio.wait([ask.answers for ask in self._batch])

    def _enqueue(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        ask = _Ask(commands, loop.create_future())
        self._queue.append(ask)
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send_all())
            self._sender.add_done_callback(self._after_sender)
        return ask.answers

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            if self._loop.is_running():
                raise RuntimeError("another event loop uses this client: one client per loop")
            if isinstance(self._client, Redis):
                self._client.connection_pool.reset()  # type: ignore[no-untyped-call] # redis-py's
        self._loop, self._sender = loop, None
        self._queue, self._batch = deque(), []

    async def _send_all(self) -> None:
        while batch := self._next_batch():
            self._batch = batch
            try:
                await self._send(batch)
            finally:
                self._batch = []
            # Let the callers just answered ask again: else the tasks split into two crowds that
            # take turns, each batch half as long.
            await asyncio.sleep(0)

    def _next_batch(self) -> list[_Ask]:
        batch: list[_Ask] = []
        size = 0
        while self._queue:
            ask = self._queue[0]
            if not ask.answers.done():
                size += len(ask.commands)
                if batch and size > LONGEST_BATCH:
                    break
                batch.append(ask)
            self._queue.popleft()
        return batch

    async def _send(self, batch: list[_Ask]) -> None:
        try:
            answers = iter(await self._exchange([c for ask in batch for c in ask.commands]))
        except asyncio.CancelledError:
            _fail(batch, ConnectionError(CUT_OFF))
            raise
        except DataError as error:
            # One caller's argument cannot be written down. Nothing was sent yet.
            if len(batch) == 1:
                return _fail(batch, error)
            for ask in batch:
                await self._send([ask])
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
            _fail(batch, error)
        else:
            for ask in batch:
                _settle(ask, [next(answers) for _ in ask.commands])

    async def _exchange(self, commands: list[Command]) -> list[Any]:
        if len(commands) == 1:  # a tenth cheaper than as a pipeline
            return [await self._client.execute_command(*commands[0])]
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute(raise_on_error=False)

    def _after_sender(self, sender: asyncio.Task[None]) -> None:
        # Someone cancelled every task of the loop.
        if sender.cancelled() and sender is self._sender:
            self._fail_queue(ConnectionError(NOT_SENT))

    def _fail_queue(self, error: Exception) -> None:
        _fail(self._queue, error)
        self._queue.clear()


def _settle(ask: _Ask, answers: list[Any]) -> None:
    error = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if error is not None:
        _fail((ask,), error)
    elif not ask.answers.done():
        ask.answers.set_result(answers)


def _fail(asks: Iterable[_Ask], error: Exception) -> None:
    for ask in asks:
        if not ask.answers.done():
            ask.answers.set_exception(error)
