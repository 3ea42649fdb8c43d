"""Connections to the store: redis-py's, which first find the primary, and leave other servers.

A unix socket needs no search. An unreadable answer raises InvalidResponse, where redis-py's parser
lets its own TypeErrors out. An error before the connection stands is marked as such, for `retry`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection as AsyncUnixDomainSocketConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from agent_sdk.store.connect_errors import mark_unsent, other_way, why_hopeless
from agent_sdk.store.credentials import file_version
from agent_sdk.store.discovery import LEAST_S
from agent_sdk.store.exchange import GARBLED, Counting, garbled
from agent_sdk.store.exchange_async import AsyncCounting

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk.store.discovery import Primary
    from agent_sdk.store.url import Address

    Probe = tuple[Callable[[Address], bool], str]
    """A question that may block for a moment, and the meaning of a yes."""

ELSEWHERE = (ReadOnlyError, MovedError, ClusterDownError)
"""Answers of a server that is no longer the primary; one ClusterDownError is MASTERDOWN."""


class _Seeking:
    """The part of a connection that finds the primary which is the same with and without asyncio.

    It is closed when the server answers that it is no longer the primary: the next call finds the
    new one, after a move of a name or of a Sentinel's or Cluster's primary.

    Args:
        primary: the search for it; None: it is at `host`.
        **options: as redis-py's connection takes them.
    """

    tls: ClassVar[bool] = False
    host: str
    port: int
    socket_connect_timeout: float | None

    def __init__(self, *, primary: Primary | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._within_s: float = options["socket_connect_timeout"]
        self._asked_other_way = False

    def _reach(self, address: Address, began: float) -> None:
        """Go to an address within what is left of the timeout since `began`."""
        self.host, self.port = address
        self.socket_connect_timeout = max(LEAST_S, self._within_s - (time.monotonic() - began))

    def _refused(self, error: ResponseError) -> None:
        """Leave a server that is no longer the primary, once its answers are in."""
        if isinstance(error, ELSEWHERE):
            self.mark_for_reconnect()  # type: ignore[attr-defined] # redis-py's
            self._doubt()

    def _doubt(self) -> None:
        if self._primary is not None:
            self._primary.doubt()

    def _why_hopeless(self, error: RedisError) -> tuple[str, Probe | None]:
        """Return the reason against another try, or a test of the other protocol, done once."""
        why = why_hopeless(error, tls=self.tls)
        other = None if why or self._asked_other_way else other_way(error, tls=self.tls)
        self._asked_other_way = self._asked_other_way or other is not None
        return why, other


def _asking(primary: Primary, node: Address, timeout_s: float) -> dict[str, Any]:
    """Options of a connection that asks one node for the primary, and tries once."""
    return {
        "host": node[0],
        "port": node[1],
        **primary.asking,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "decode_responses": True,
    }


class TcpConnection(_Seeking, Counting, Connection):
    """Connection that first finds the primary, where it may move; see `_Seeking`."""

    asker: ClassVar[type[Connection]] = Connection

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Find the primary and connect, both within the timeout for connecting."""
        if self.is_connected:
            super().connect_check_health(*args, **options)
            return
        if self._primary is not None:
            began = time.monotonic()
            self._reach(self._find(self._primary), began)
        try:
            super().connect_check_health(*args, **options)
        except RedisError as error:
            self._doubt()
            why, other = self._why_hopeless(error)
            if other is not None and other[0]((self.host, self.port)):
                why = other[1]
            mark_unsent(error, why)
            raise

    def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        """Greet the server; one that Sentinels named must be a primary."""
        super().on_connect_check_health(*args, **options)
        if self._primary is not None and self._primary.greets:
            self.send_command("HELLO", check_health=False)
            self._primary.check(self.read_response())

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Return an answer; after one that sends us elsewhere this connection is not used again."""
        try:
            return super().read_response(*args, **options)
        except GARBLED as error:
            raise garbled(error) from error
        except ELSEWHERE:
            self.mark_for_reconnect()
            self._doubt()
            raise

    def _find(self, primary: Primary) -> Address:
        steps = primary.find(self._within_s)
        try:
            node = next(steps)
            while True:
                node = steps.send(self._answer_of(primary, *node))
        except StopIteration as end:
            found: Address = end.value
            return found

    def _answer_of(self, primary: Primary, node: Address, timeout_s: float) -> Any:
        once = Retry(NoBackoff(), 0)
        connection = self.asker(**_asking(primary, node, timeout_s), retry=once)
        try:
            connection.connect()
            connection.send_command(*primary.ask)
            return connection.read_response()
        except RedisError as error:
            return error
        finally:
            connection.disconnect()


class TlsConnection(TcpConnection, SSLConnection):
    """Connection over TLS that first finds the primary."""

    asker = SSLConnection
    tls = True


class UnixConnection(Counting, UnixDomainSocketConnection):
    """Connection over a unix socket."""

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect; an error is marked: nothing was sent, and another try may be pointless."""
        try:
            super().connect_check_health(*args, **options)
        except RedisError as error:
            mark_unsent(error, why_hopeless(error))
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Return an answer."""
        try:
            return super().read_response(*args, **options)
        except GARBLED as error:
            raise garbled(error) from error


class AsyncTcpConnection(_Seeking, AsyncCounting, AsyncConnection):
    """Connection of asyncio; see `TcpConnection`."""

    asker: ClassVar[type[AsyncConnection]] = AsyncConnection

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Find the primary and connect; see `TcpConnection`."""
        if self.is_connected:
            await super().connect_check_health(*args, **options)
            return
        if self._primary is not None:
            began = time.monotonic()
            self._reach(await self._find(self._primary), began)
        try:
            await super().connect_check_health(*args, **options)
        except RedisError as error:
            self._doubt()
            why, other = self._why_hopeless(error)
            if other is not None and await asyncio.to_thread(other[0], (self.host, self.port)):
                why = other[1]
            mark_unsent(error, why)
            raise

    async def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        """Greet the server; see `TcpConnection`."""
        await super().on_connect_check_health(*args, **options)
        if self._primary is not None and self._primary.greets:
            await self.send_command("HELLO", check_health=False)
            self._primary.check(await self.read_response())

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return an answer; see `TcpConnection`."""
        try:
            return await super().read_response(*args, **options)
        except GARBLED as error:
            raise garbled(error) from error
        except ELSEWHERE:
            self.mark_for_reconnect()
            self._doubt()
            raise

    async def _find(self, primary: Primary) -> Address:
        steps = primary.find(self._within_s)
        try:
            node = next(steps)
            while True:
                node = steps.send(await self._answer_of(primary, *node))
        except StopIteration as end:
            found: Address = end.value
            return found

    async def _answer_of(self, primary: Primary, node: Address, timeout_s: float) -> Any:
        once = AsyncRetry(NoBackoff(), 0)
        connection = self.asker(**_asking(primary, node, timeout_s), retry=once)
        try:
            await connection.connect()
            await connection.send_command(*primary.ask)
            return await connection.read_response()
        except RedisError as error:
            return error
        finally:
            await connection.disconnect(nowait=True)


class AsyncTlsConnection(AsyncTcpConnection, AsyncSSLConnection):
    """Connection of asyncio over TLS; it connects with the present content of certificate files.

    redis-py keeps the first content that an asyncio connection read. Reading takes a while, so it
    is repeated only after a file has changed.
    """

    asker = AsyncSSLConnection
    tls = True
    _read: tuple[object, ...] = ()

    def _connection_arguments(self) -> Any:
        read = tuple(map(file_version, (self.ca_certs, self.certfile, self.keyfile)))
        if read != self._read or self.ssl_context.ca_path:
            self.ssl_context.context = None
        arguments = super()._connection_arguments()
        self._read = read
        return arguments


class AsyncUnixConnection(AsyncCounting, AsyncUnixDomainSocketConnection):
    """Connection of asyncio over a unix socket; see `UnixConnection`."""

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect; see `UnixConnection`."""
        try:
            await super().connect_check_health(*args, **options)
        except RedisError as error:
            mark_unsent(error, why_hopeless(error))
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return an answer; see `UnixConnection`."""
        try:
            return await super().read_response(*args, **options)
        except GARBLED as error:
            raise garbled(error) from error
