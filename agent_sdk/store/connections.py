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
    InvalidResponse,
    MovedError,
    ReadOnlyError,
    RedisError,
)
from redis.retry import Retry

from agent_sdk.store.connect_errors import mark_unsent, other_way, why_hopeless
from agent_sdk.store.credentials import file_version
from agent_sdk.store.discovery import LEAST_S
from agent_sdk.store.exchange import AsyncCounting, Counting

if TYPE_CHECKING:
    from agent_sdk.store.discovery import Primary
    from agent_sdk.store.url import Address

ELSEWHERE = (ReadOnlyError, MovedError, ClusterDownError)
"""Answers of a server that is no longer the primary; one ClusterDownError is MASTERDOWN."""

GARBLED = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of the parser over an answer that is not Redis's: a map with a list as key, say."""


def _garbled(error: Exception) -> InvalidResponse:
    return InvalidResponse(f"no answer that Redis gives: {type(error).__name__}: {error}")


class TcpConnection(Counting, Connection):
    """Connection that first finds the primary, where it may move.

    It is closed when the server answers that it is no longer the primary: the next call finds the
    new one, after a move of a name or of a Sentinel's or Cluster's primary.

    Args:
        primary: the search for it; None: it is at `host`.
        **options: as redis-py's connection takes them.
    """

    asker: ClassVar[type[Connection]] = Connection

    tls: ClassVar[bool] = False

    def __init__(self, *, primary: Primary | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._within_s: float = options["socket_connect_timeout"]
        self._asked_other_way = False

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Find the primary and connect, both within the timeout for connecting."""
        if self.is_connected:
            super().connect_check_health(*args, **options)
            return
        if self._primary is not None:
            began = time.monotonic()
            self.host, self.port = self._find(self._primary)
            self.socket_connect_timeout = max(LEAST_S, self._within_s - (time.monotonic() - began))
        try:
            super().connect_check_health(*args, **options)
        except RedisError as error:
            if self._primary is not None:
                self._primary.doubt()
            mark_unsent(error, self._why_hopeless(error))
            raise

    def _why_hopeless(self, error: RedisError) -> str:
        """Return the reason against another try; a server is asked once for the other protocol."""
        why = why_hopeless(error, tls=self.tls)
        other = None if why or self._asked_other_way else other_way(error, tls=self.tls)
        if other is not None:
            self._asked_other_way = True
            speaks, says = other
            why = says if speaks((self.host, self.port)) else ""
        return why

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
            raise _garbled(error) from error
        except ELSEWHERE:
            self.mark_for_reconnect()
            if self._primary is not None:
                self._primary.doubt()
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
        connection = self.asker(
            host=node[0],
            port=node[1],
            **primary.asking,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
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
            raise _garbled(error) from error


class AsyncTcpConnection(AsyncCounting, AsyncConnection):
    """Connection of asyncio; see `TcpConnection`."""

    asker: ClassVar[type[AsyncConnection]] = AsyncConnection

    tls: ClassVar[bool] = False

    def __init__(self, *, primary: Primary | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._within_s: float = options["socket_connect_timeout"]
        self._asked_other_way = False

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Find the primary and connect; see `TcpConnection`."""
        if self.is_connected:
            await super().connect_check_health(*args, **options)
            return
        if self._primary is not None:
            began = time.monotonic()
            self.host, self.port = await self._find(self._primary)
            self.socket_connect_timeout = max(LEAST_S, self._within_s - (time.monotonic() - began))
        try:
            await super().connect_check_health(*args, **options)
        except RedisError as error:
            if self._primary is not None:
                self._primary.doubt()
            mark_unsent(error, await self._why_hopeless(error))
            raise

    async def _why_hopeless(self, error: RedisError) -> str:
        """Return the reason against another try; see `TcpConnection`."""
        why = why_hopeless(error, tls=self.tls)
        other = None if why or self._asked_other_way else other_way(error, tls=self.tls)
        if other is not None:
            self._asked_other_way = True
            speaks, says = other
            why = says if await asyncio.to_thread(speaks, (self.host, self.port)) else ""
        return why

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
            raise _garbled(error) from error
        except ELSEWHERE:
            self.mark_for_reconnect()
            if self._primary is not None:
                self._primary.doubt()
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
        connection = self.asker(
            host=node[0],
            port=node[1],
            **primary.asking,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=AsyncRetry(NoBackoff(), 0),
            decode_responses=True,
        )
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
            raise _garbled(error) from error
