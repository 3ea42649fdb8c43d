"""Calls to a plain server without redis-py, for programs that must start at once.

redis-py takes most of a short program's start. One server, over a socket without TLS and with a
password at most, is asked here through hiredis alone. All else is redis-py's: another kind of
store, a command that is not in `PLAIN`, and any trouble. Where no connection stands, redis-py
connects, and its error has the reason. A call that the server refused changed nothing, so redis-py
repeats it and raises the error of that kind. From then on it makes all calls.
"""

from __future__ import annotations

import math
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from agent_sdk.protocol.marks import mark_of, take_mark
from agent_sdk.store.store import Store
from agent_sdk.store.url import parse

try:
    import hiredis
except ImportError:  # an install without the extra: redis-py makes all calls
    hiredis = None  # type: ignore[assignment] # tested before each use

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from agent_sdk.store.pools import Pool
    from agent_sdk.store.url import StoreUrl

PLAIN: Final = frozenset({
    "BLMPOP", "EVALSHA", "FCALL", "GET", "HGET", "HGETALL", "HMGET", "SCARD", "SCRIPT LOAD",
    "SMEMBERS", "TIME",
    "ZCARD", "ZRANGE", "ZRANK",
})  # fmt: skip
"""Commands with answers that are read as they come: redis-py would not change their form."""

KNOWN: Final = frozenset({"db", "host", "password", "path", "port", "username"})
"""Options of a store's URL with which no redis-py is needed."""

READ: Final = 65536

Reply = Any


class QuickStore(Store):
    """Store that is asked without redis-py for as long as that will do."""

    def connect(self) -> redis.Redis:
        """Return a client; of redis-py's it has the few methods that a blocking client uses."""
        where = parse(self.url)
        if (
            hiredis is None
            or where.transport == "tls"
            or where.nodes
            or where.options.keys() - KNOWN
        ):
            return super().connect()
        return cast("redis.Redis", QuickRedis(self, where))


class QuickRedis:
    """Client of a plain server; what it lacks is redis-py's.

    Args:
        store: the store, for redis-py to connect to when need be.
        where: its URL's parts.
    """

    def __init__(self, store: Store, where: StoreUrl) -> None:
        self._store, self._where = store, where
        self._idle: list[_Wire] = []
        self._busy: set[_Wire] = set()
        self._other: redis.Redis | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.redis_py(), name)

    @property
    def connection_pool(self) -> QuickRedis:
        """The same: it is its own pool."""
        return self

    def execute_command(self, *command: Any) -> Reply:
        """Send one command, and return its answer."""
        return self.all([command])[0]

    def hmget(self, key: str, *fields: str) -> list[str | None]:
        """Read some fields of a hash."""
        found: list[str | None] = self.execute_command("HMGET", key, *fields)
        return found

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        """Return a list of commands that are sent together."""
        assert not transaction  # noqa: S101 - no reading asks for one
        return _Pipeline(self)

    def hang_up(self) -> None:
        """End the waiting of all connections; from any thread."""
        for wire in list(self._busy):
            wire.hang_up()
        if self._other is not None:
            self._other.connection_pool.hang_up()  # type: ignore[attr-defined] # of `Store.connect`

    def close(self) -> None:
        """Disconnect."""
        while self._idle:
            self._idle.pop().close()
        if self._other is not None:
            self._other.close()

    def redis_py(self) -> redis.Redis:
        """Return redis-py's client, and leave all further calls to it."""
        with self._lock:
            if self._other is None:
                self._other = Store.connect(self._store)
        return self._other

    def all(self, commands: Sequence[tuple[Any, ...]]) -> list[Reply]:
        """Send commands together; return their answers.

        Raises:
            RedisError: one was refused, or there is no answer.
        """
        found = self.asked(commands)
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        return found

    def asked(self, commands: Sequence[tuple[Any, ...]]) -> list[Reply]:
        """Send commands together; return the answer to each, or its error."""
        if any(command[0] not in PLAIN for command in commands):
            return self._by_redis_py(commands)
        packed = b"".join(hiredis.pack_command(_words(command)) for command in commands)
        answers = self._exchanged(packed, [mark_of(command) for command in commands])
        if answers is None:
            return self._by_redis_py(commands)
        refused = [n for n, each in enumerate(answers) if isinstance(each, hiredis.ReplyError)]
        again = self._by_redis_py([commands[n] for n in refused]) if refused else []
        for n, answer in zip(refused, again, strict=True):
            answers[n] = answer
        return answers

    def ask(self, packed: bytes, marks: Sequence[str], now: float) -> list[Reply]:
        """Send packed calls of verbs; return the reply to each, or the server's error."""
        if len(marks) == 1:  # of several, those that were carried out must not be repeated
            answers = self._exchanged(packed, marks)
            if answers is not None and not isinstance(answers[0], hiredis.ReplyError):
                return answers
        pool = cast("Pool", self.redis_py().connection_pool)
        return pool.ask(packed, marks, now)

    def post(self, packed: bytes, mark: str, told: Callable[[Any], object], now: float) -> bool:
        """Send a call whose reply is read later, over redis-py's connections; see `pools.Pool`."""
        if self._other is None:
            return False
        pool = cast("Pool", self._other.connection_pool)
        return pool.post(packed, mark, told, now)

    def collect(self, within_s: float = math.inf) -> None:
        """Read the replies to what was posted; see `pools.Pool`."""
        if self._other is not None:
            cast("Pool", self._other.connection_pool).collect(within_s)

    def _exchanged(self, packed: bytes, marks: Sequence[str]) -> list[Reply] | None:
        """Send packed commands; return their answers, or None: redis-py is to send them.

        Raises:
            RedisError: they were sent, and there is no answer.
        """
        if self._other is not None:
            return None
        try:
            wire = self._take()
        except (OSError, _NotPlain):
            return None
        self._busy.add(wire)
        try:
            answers = wire.ask(packed, marks)
        except BaseException as error:
            wire.close()
            if isinstance(error, (OSError, hiredis.HiredisError)):
                self.redis_py()
                raise RedisConnectionError(f"Error on the socket: {error}") from error
            raise
        finally:
            self._busy.discard(wire)
        self._idle.append(wire)
        return answers

    def _take(self) -> _Wire:
        with suppress(IndexError):  # another thread took the last
            return self._idle.pop()
        return _Wire(self._store, self._where)

    def _by_redis_py(self, commands: Sequence[tuple[Any, ...]]) -> list[Reply]:
        pipe = self.redis_py().pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call] # untyped in redis-py
        return pipe.execute(raise_on_error=False)


class _Pipeline:
    """Commands that are sent together."""

    def __init__(self, redis: QuickRedis) -> None:
        self._redis = redis
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *command: Any) -> None:
        """Add a command."""
        self._commands.append(command)

    def execute(self, *, raise_on_error: bool = True) -> list[Reply]:
        """Send them, and return their answers."""
        send = self._redis.all if raise_on_error else self._redis.asked
        return send(self._commands)


class _NotPlain(Exception):
    """Error of a server that does not greet as expected."""


class _Wire:
    """Connection that stands; one that was interrupted in the middle of a call is closed.

    Raises:
        OSError: it cannot be connected.
        _NotPlain: the server refuses the greeting.
    """

    def __init__(self, store: Store, where: StoreUrl) -> None:
        found = where.options
        self._socket = _connected(found, store.timeout_s)
        self._socket.settimeout(store.timeout_s + store.blocks_s)
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace", notEnoughData=_NotPlain)
        self._greet(found)

    def ask(self, packed: bytes, marks: Sequence[str]) -> list[Reply]:
        """Send commands in one write; return the answer to each, or the server's refusal."""
        self._socket.sendall(packed)
        return [_own(self._next(), mark) for mark in marks]

    def hang_up(self) -> None:
        """End its waiting."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def _next(self) -> Reply:
        while (reply := self._reader.gets()) is _NotPlain:
            data = self._socket.recv(READ)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(data)
        return reply

    def _greet(self, found: dict[str, Any]) -> None:
        """Ask for answers with maps as such, log in and choose the database."""
        words: list[tuple[Any, ...]] = [("HELLO", "3")]
        if found.keys() & {"username", "password"}:
            user, password = found.get("username", "default"), found.get("password", "")
            words = [("HELLO", "3", "AUTH", user, password)]
        if "db" in found:
            words.append(("SELECT", str(found["db"])))
        try:
            said = self.ask(b"".join(map(hiredis.pack_command, words)), [""] * len(words))
        except (OSError, hiredis.HiredisError):
            self.close()
            raise _NotPlain from None
        if any(isinstance(each, hiredis.ReplyError) for each in said):
            self.close()
            raise _NotPlain


def _connected(found: dict[str, Any], timeout_s: float) -> socket.socket:
    """Return a socket that is connected to the server of these options."""
    if "path" not in found:
        address = (found.get("host", "localhost"), found.get("port", 6379))
        made = socket.create_connection(address, timeout_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(timeout_s)
        made.connect(found["path"])
    except BaseException:
        made.close()
        raise
    return made


def _words(command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a command's words, numbers as text.

    hiredis 3.5.0 does not survive an interrupt while it packs a number.
    """
    name, *args = command
    return (
        *name.split(),
        *(str(word) if type(word) in (int, float) else word for word in args),
    )


def _not_loaded(refusal: str) -> ResponseError | None:
    """Return redis-py's error of a server without the function or script; None: another one."""
    if refusal.startswith("NOSCRIPT "):
        return NoScriptError(refusal.partition(" ")[2])
    if refusal.startswith("ERR Function not found"):
        return ResponseError(refusal.partition(" ")[2])
    return None


def _own(reply: Reply, mark: str) -> Reply:
    """Return a reply without its mark; redis-py's error if the server lacks the function.

    Raises:
        ConnectionResetError: it is the reply to another call.
    """
    if isinstance(reply, hiredis.ReplyError):
        return _not_loaded(str(reply)) or reply
    if not take_mark(reply, mark):
        raise ConnectionResetError("the answer belongs to another call")
    return reply
