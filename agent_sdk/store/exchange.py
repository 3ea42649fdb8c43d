"""Connections that count their answers, so that no call reads another's; see `pools`, too.

A caller may be interrupted anywhere between its command and its answer: Ctrl-C, a handler's time
limit, a cancelled task. redis-py then puts the connection back as it is, and the next call reads
the answer of the call before. Here a connection knows its unanswered commands. One that is owed an
answer, or was not greeted to the end, is closed and never used as it is.

The calls of verbs carry a mark, and their replies repeat it. A reply with another mark belongs to
another call: the connection is closed, and the call is repeated by its token like one whose
connection broke.

A command may be posted: its reply is read before that of the next command, and waits until then.
A connection that breaks meanwhile drops it, and says nothing: its sender has to notice that.
"""

from __future__ import annotations

import math
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
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from agent_sdk.clock import local_now
from agent_sdk.protocol.marks import mark_of, take_mark
from agent_sdk.store.handler_errors import raise_of_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MOST_POSTED = 64
"""Most replies that wait to be read: more would fill the server's buffers."""

FRESH_S = 0.01
"""Seconds after an answer for which a connection is not asked whether its server closed it."""

GARBLED = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of the parser over an answer that is not Redis's: a map with a list as key, say."""


def garbled(error: Exception) -> InvalidResponse:
    """Return the error of an answer that is not Redis's."""
    return InvalidResponse(f"no answer that Redis gives: {type(error).__name__}: {error}")


class AnswerOfAnother(ConnectionError):
    """Error of a reply to another call: nothing more is read from that connection."""


def as_text(command: Iterable[Any]) -> tuple[Any, ...]:
    """Return the command with its numbers as text.

    hiredis 3.5.0 does not survive an interrupt while it packs numbers itself.
    """
    return tuple(str(word) if type(word) in (int, float) else word for word in command)


def own(response: Any, mark: str) -> Any:
    """Return the reply without its mark.

    Raises:
        AnswerOfAnother: it has another mark, or none.
    """
    if not take_mark(response, mark):
        raise AnswerOfAnother("the answer belongs to another call, so the connection is closed")
    return response


def of_socket(error: Exception) -> Exception:
    """Return the error of a socket, or of the parser, as redis-py would raise it."""
    if isinstance(error, TimeoutError):
        return RedisTimeout("Timeout on the socket")
    if isinstance(error, OSError):
        return ConnectionError(f"Error on the socket: {error}")
    return garbled(error)


class Counted:
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
        commands = [as_text(command) for command in commands]
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


class Counting(Counted):
    """Blocking connection that is closed instead of used while it is owed an answer.

    Attributes:
        own_ref: a weak reference to it.
        ready_until: the time, on `clock.local_now`'s clock, until which it can take a command as
            it is: it was answered a moment ago, and nothing else was done with it since.
        posted: what was posted and is not answered yet: the mark, and what its reply is told.
    """

    next_health_check: Any
    _should_reconnect: bool
    _sock: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.own_ref = ref(self)
        self.ready_until = 0.0
        self.posted: deque[tuple[str, Callable[[Any], object]]] = deque()

    def connect(self, *args: Any, **options: Any) -> None:
        """Make the connection ready for a command: connected, greeted and owed nothing."""
        if self.is_connected and not self.clean:
            self.disconnect()
        if self.posted:
            try:
                self.collect()
            except RedisError as error:  # it is closed, and connects anew
                raise_of_handler(error)
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
        self.posted.clear()
        super().disconnect(*args, **options)  # type: ignore[misc] # redis-py's
        self._forget()

    def hang_up(self) -> None:
        """End the connection's waiting; from any thread."""
        sock: socket.socket | None = self._sock
        if sock is not None:
            with suppress(OSError):  # not TLS's own, after which the socket would write plain text
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def send_command(self, *args: Any, **options: Any) -> None:
        """Send a command; an answer is due."""
        packed = self.pack_command(*as_text(args))  # type: ignore[attr-defined] # redis-py's
        self._send(packed, [mark_of(args)], check_health=options.get("check_health", True))

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send the packed commands; an answer is due for each of them."""
        self._send(command, self._take_packed(), check_health=check_health)

    def _send(self, packed: Any, marks: list[str], *, check_health: bool) -> None:
        self.ready_until = 0.0
        if self.posted:
            self.collect()
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
        try:
            sock.sendall(packed)
            if self.posted:
                self._read_posted(sock)
            replies = self._replies(sock, marks)
        except (OSError, *GARBLED) as error:
            self.disconnect()
            raise of_socket(error) from error
        except BaseException:
            self.disconnect()
            raise
        self._awaited.clear()
        if self.health_check_interval:
            self.next_health_check = time.monotonic() + self.health_check_interval
        if not self._should_reconnect:
            self.ready_until = now + FRESH_S
        return replies

    @property
    def takes_posts(self) -> bool:
        """True if it stands, and may be written to."""
        return self._sock is not None and self.clean and not self._should_reconnect

    def post(self, packed: bytes, mark: str, told: Callable[[Any], object], now: float) -> None:
        """Send a command, and read its reply later.

        Args:
            packed: the command.
            mark: its mark.
            told: called with the reply, or with the server's error; never if the connection breaks.
            now: the time, on `clock.local_now`'s clock.
        """
        if len(self.posted) >= MOST_POSTED:
            self.collect()
        self.ready_until = 0.0
        self._awaited.append(mark)  # an interrupt until it is posted closes the connection
        try:
            self._sock.sendall(packed)
        except OSError as error:
            self.disconnect()
            raise of_socket(error) from error
        self.posted.append((mark, told))
        self._awaited.clear()
        if not self._should_reconnect:
            self.ready_until = now + FRESH_S

    def collect(self, within_s: float = math.inf) -> None:
        """Read the replies to what was posted: those that come within some seconds.

        Without a limit it is the connection's timeout that ends the wait, with an error.
        """
        until = local_now() + within_s
        try:
            self._read_posted(self._sock, until)
        except (OSError, *GARBLED) as error:
            self.disconnect()
            raise of_socket(error) from error
        except BaseException:
            self.disconnect()
            raise

    def _read_posted(self, sock: socket.socket, until: float = math.inf) -> None:
        while self.posted:
            if until < math.inf and not self.can_read(max(0.0, until - local_now())):  # type: ignore[attr-defined] # redis-py's
                return
            mark, told = self.posted[0]
            [reply] = self._replies(sock, (mark,))
            self.posted.popleft()
            told(reply)

    def _replies(self, sock: socket.socket, marks: Sequence[str]) -> list[Any]:
        """Read the reply to each command, which must have its mark, or the server's error."""
        parser = self._parser
        reader: Any = getattr(parser, "_reader", None)  # hiredis's; the other parsers have none
        replies = []
        for mark in marks:
            reply = reader.gets() if reader else NOT_ENOUGH_DATA
            if reader and reply is NOT_ENOUGH_DATA and (size := sock.recv_into(parser._buffer)):  # noqa: SLF001 - as below
                reader.feed(parser._buffer, 0, size)  # noqa: SLF001 - as below
                reply = reader.gets()
            if type(reply) is not list:
                reply = self._unusual(reply)
            replies.append(reply if isinstance(reply, ResponseError) else own(reply, mark))
        return replies

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
            return own(response, self._answered())
        except AnswerOfAnother:
            self.disconnect()
            raise
