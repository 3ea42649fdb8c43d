"""Connections that count their answers, so that no call reads another's; see `pools`, too.

A caller may be interrupted anywhere between its command and its answer: Ctrl-C, a handler's time
limit, a cancelled task. redis-py then puts the connection back as it is, and the next call reads
the answer of the call before. Here a connection knows its unanswered commands. One that is owed an
answer, or was not greeted to the end, is closed and never used as it is.

The calls of verbs carry a mark, and their replies repeat it. A reply with another mark belongs to
another call: the connection is closed, and the call is repeated by its token like one whose
connection broke.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's name for it
    InvalidResponse,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from agent_sdk.protocol.marks import mark_of, take_mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FRESH_S = 0.01
"""Seconds after an answer for which a connection is not asked whether its server closed it."""

READ_BYTES = 65536
"""Most bytes that are read at once."""

GARBLED = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of the parser over an answer that is not Redis's: a map with a list as key, say."""


def garbled(error: Exception) -> InvalidResponse:
    """Return the error of an answer that is not Redis's."""
    return InvalidResponse(f"no answer that Redis gives: {type(error).__name__}: {error}")


class AnswerOfAnother(ConnectionError):
    """Error of a reply to another call: nothing more is read from that connection."""


def _as_text(command: Iterable[Any]) -> tuple[Any, ...]:
    """Return the command with its numbers as text.

    hiredis 3.5.0 does not survive an interrupt while it packs numbers itself.
    """
    return tuple(str(word) if type(word) in (int, float) else word for word in command)


def _own(response: Any, mark: str) -> Any:
    """Return the reply without its mark.

    Raises:
        AnswerOfAnother: it has another mark, or none.
    """
    if not take_mark(response, mark):
        raise AnswerOfAnother("the answer belongs to another call, so the connection is closed")
    return response


def _of_socket(error: Exception) -> Exception:
    """Return the error of a socket, or of the parser, as redis-py would raise it."""
    if isinstance(error, TimeoutError):
        return RedisTimeout("Timeout on the socket")
    if isinstance(error, OSError):
        return ConnectionError(f"Error on the socket: {error}")
    return garbled(error)


class _Counting:
    """Common part of both kinds of connection, mixed in before redis-py's."""

    is_connected: bool
    socket_timeout: float | None
    health_check_interval: Any
    _parser: Any

    def __init__(self, **options: Any) -> None:
        self._awaited: deque[str] = deque()  # mark of each sent command
        self._packed: list[str] = []  # marks of the commands that are sent next
        self._greeted = False
        super().__init__(**options)

    @property
    def clean(self) -> bool:
        """True if the next answer will be that of the next command."""
        return self._greeted and not self._awaited and not self._packed

    def pack_commands(self, commands: Any) -> list[bytes]:
        """Pack commands that are sent next; an answer is due for each."""
        commands = [_as_text(command) for command in commands]
        packed: list[bytes] = super().pack_commands(commands)  # type: ignore[misc] # redis-py's
        self._packed += map(mark_of, commands)
        return packed

    def _take_packed(self) -> list[str]:
        packed, self._packed = self._packed, []
        return packed

    def _forget(self) -> None:
        """Drop all expected answers: their commands went over a closed connection."""
        self._greeted = False
        self._awaited.clear()
        self._packed = []

    def _answered(self) -> str:
        """Remove and return the mark of the answered command."""
        return self._awaited.popleft() if self._awaited else ""

    def _refused(self, error: ResponseError) -> None:
        """Take note of a server's error."""


class Counting(_Counting):
    """Blocking connection that is closed instead of used while it is owed an answer.

    Attributes:
        own_ref: a weak reference to it.
        ready_until: the time, on `clock.local_now`'s clock, until which it can take a command as
            it is: it was answered a moment ago, and nothing else was done with it since.
    """

    next_health_check: Any
    _should_reconnect: bool
    _sock: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.own_ref = ref(self)
        self.ready_until = 0.0

    def connect(self, *args: Any, **options: Any) -> None:
        """Make the connection ready for a command: connected, greeted and owed nothing."""
        if self.is_connected and not self.clean:
            self.disconnect()
        super().connect(*args, **options)  # type: ignore[misc] # redis-py's

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect and greet the server; close on failure."""
        if self.is_connected:
            return
        self._forget()
        try:
            super().connect_check_health(*args, **options)  # type: ignore[misc] # redis-py's
            self._greeted = True
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection."""
        self._greeted = False
        self.ready_until = 0.0
        super().disconnect(*args, **options)  # type: ignore[misc] # redis-py's
        self._forget()

    def hang_up(self) -> None:
        """End the connection's waiting; from any thread."""
        sock: socket.socket | None = self._sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def send_command(self, *args: Any, **options: Any) -> None:
        """Send a command; an answer is due."""
        packed = self.pack_command(*_as_text(args))  # type: ignore[attr-defined] # redis-py's
        self._send(packed, [mark_of(args)], check_health=options.get("check_health", True))

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send the packed commands; an answer is due for each of them."""
        self._send(command, self._take_packed(), check_health=check_health)

    def _send(self, packed: Any, marks: list[str], *, check_health: bool) -> None:
        self.ready_until = 0.0
        # Commands of the connect and of the health check are answered before.
        if not self.is_connected:
            self.connect_check_health(check_health=False)
        if check_health:
            self.check_health()  # type: ignore[attr-defined] # redis-py's
        self._awaited += marks
        super().send_packed_command(packed, check_health=False)  # type: ignore[misc] # redis-py's

    def mark_for_reconnect(self) -> None:
        """Have it closed when it comes back."""
        self.ready_until = 0.0
        super().mark_for_reconnect()  # type: ignore[misc] # redis-py's

    def ask(self, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Send commands in one write; return the reply to each, or the server's error.

        It is `send_packed_command` and `read_response`, without the layers between.

        Args:
            packed: the commands.
            marks: the mark of each command.
            now: the time, on `clock.local_now`'s clock.
        """
        if self._sock is None:  # another thread has just closed the client
            self.connect_check_health(check_health=False)
        if self.health_check_interval:
            self.check_health()  # type: ignore[attr-defined] # redis-py's
        sock = self._sock
        self.ready_until = 0.0
        self._awaited.extend(marks)
        replies = []
        try:
            sock.sendall(packed)
            for mark in marks:
                replies.append(self._next(sock, mark))  # noqa: PERF401 - quicker for one or two
        except (OSError, *GARBLED) as error:
            self.disconnect()
            raise _of_socket(error) from error
        except BaseException:
            self.disconnect()
            raise
        self._awaited.clear()
        if self.health_check_interval:
            self.next_health_check = time.monotonic() + self.health_check_interval
        if not self._should_reconnect:
            self.ready_until = now + FRESH_S
        return replies

    def _next(self, sock: socket.socket, mark: str) -> Any:
        """Read the next reply, which must have the mark, or the server's error."""
        parser = self._parser
        reader: Any = getattr(parser, "_reader", None)  # hiredis's; the other parsers have none
        reply = reader.gets() if reader else NOT_ENOUGH_DATA
        if reader and reply is NOT_ENOUGH_DATA and (size := sock.recv_into(parser._buffer)):  # noqa: SLF001 - as below
            reader.feed(parser._buffer, 0, size)  # noqa: SLF001 - as below
            reply = reader.gets()
        if type(reply) is not list:
            reply = self._unusual(reply)
            if isinstance(reply, ResponseError):
                return reply
        return _own(reply, mark)

    def _unusual(self, reply: Any) -> Any:
        """Return a reply that is not in yet, or is a push beside the replies, or is an error."""
        if reply is NOT_ENOUGH_DATA:
            reply = self._parser.read_response()
        elif isinstance(reply, list):
            self._parser.handle_push_response(reply)
            reply = self._parser.read_response()
        if isinstance(reply, ResponseError):
            self._refused(reply)
        elif isinstance(reply, Exception):
            raise reply
        return reply

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read the next answer."""
        try:
            response = super().read_response(*args, **options)  # type: ignore[misc] # redis-py's
        except ResponseError:
            self._answered()
            raise
        try:
            return _own(response, self._answered())
        except AnswerOfAnother:
            self.disconnect()
            raise


class AsyncCounting(_Counting):
    """Connection of asyncio that is closed instead of used while it is owed an answer."""

    async def connect(self, *args: Any, **options: Any) -> None:
        """Make the connection ready for a command; see `Counting`."""
        if self.is_connected and not self.clean:
            await self.disconnect(nowait=True)
        await super().connect(*args, **options)  # type: ignore[misc] # redis-py's

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect and greet the server; see `Counting`."""
        if self.is_connected:
            return
        self._forget()
        try:
            await super().connect_check_health(*args, **options)  # type: ignore[misc] # redis-py's
            self._greeted = True
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection; see `Counting`."""
        self._greeted = False
        await super().disconnect(*args, **options)  # type: ignore[misc] # redis-py's
        self._forget()

    def hang_up(self) -> None:
        """Close the connection at once; in its own loop."""
        self._close()  # type: ignore[attr-defined] # redis-py's
        self._forget()

    async def send_command(self, *args: Any, **options: Any) -> None:
        """Send a command; see `Counting`."""
        packed = self.pack_command(*_as_text(args))  # type: ignore[attr-defined] # redis-py's
        await self._send(packed, [mark_of(args)], check_health=options.get("check_health", True))

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send the packed commands; see `Counting`."""
        await self._send(command, self._take_packed(), check_health=check_health)

    async def _send(self, packed: Any, marks: list[str], *, check_health: bool) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[attr-defined] # redis-py's
        self._awaited += marks
        try:
            # redis-py's own way to send is wait_for, which before Python 3.12 swallows a
            # cancellation that comes when all is sent: the task then waits for the answer.
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(packed)  # type: ignore[attr-defined] # redis-py's
        except BaseException as error:
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeout("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise ConnectionError(f"Error while writing to socket: {error}") from error
            raise

    def expect(self, marks: Sequence[str]) -> None:
        """Take note of packed commands that are sent next: an answer is due for each."""
        self._packed += marks

    def at_hand(self, mark: str) -> Any:
        """Return the next reply, or the server's error, if it has been read; else NOT_ENOUGH_DATA.

        Only of a connection with hiredis, and for a command with a mark.
        """
        parser = self._parser
        try:
            reply = parser._reader.gets()  # noqa: SLF001 - hiredis's
        except GARBLED as error:
            raise garbled(error) from error
        if reply is NOT_ENOUGH_DATA:
            return reply
        if type(reply) is list:
            self._awaited.popleft()
            return _own(reply, mark)
        if isinstance(reply, list):  # a push beside the replies, of which none was asked for
            return self.at_hand(mark)
        if isinstance(reply, ResponseError):
            self._awaited.popleft()
            self._refused(reply)
            return reply
        if isinstance(reply, Exception):
            raise reply
        return _own(reply, mark)

    async def read_more(self) -> None:
        """Read what has come, or comes within the timeout for an answer."""
        parser = self._parser
        try:
            async with asyncio.timeout(self.socket_timeout):
                data = await parser._stream.read(READ_BYTES)  # noqa: SLF001 - hiredis's
        except OSError as error:
            raise _of_socket(error) from error
        if not data:
            raise ConnectionError("Connection closed by server.")
        parser._reader.feed(data)  # noqa: SLF001 - hiredis's

    @property
    def has_hiredis(self) -> bool:
        """Return whether `at_hand` and `read_more` read it."""
        return hasattr(self._parser, "_reader")

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read the next answer; see `Counting`."""
        try:
            response = await super().read_response(*args, **options)  # type: ignore[misc] # redis-py's
        except ResponseError:
            self._answered()
            raise
        try:
            return _own(response, self._answered())
        except AnswerOfAnother:
            await self.disconnect(nowait=True)
            raise
