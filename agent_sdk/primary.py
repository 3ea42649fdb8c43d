"""Where the pool's primary is, where its address may change: asked anew for each connection.

Sentinel and Cluster need the same of a client, since all of a pool is in one slot: the address of
the one server that takes its writes now. redis-py's own clients for them ask and follow inside a
call, with up to ten tries or sixteen redirections and sleeps, past the caller's deadline. Here a
connection asks once before it connects, within its own timeout; whatever says that the primary is
elsewhere closes it once its answers are in, and `patience` decides about the next try.

An ASK is not followed. It says that the slot's keys are on their way to another node, and a script
must see all of a pool or nothing. On the node that they leave, `KEYS[1]`, which is the name of no
key, has every script answered ASK from the first moment on; on the other one, ASKING would let it
run among those that have arrived. So it is tried again until MOVED tells that all have.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - redis-py's name for it
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
)
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.store_url import Address, StoreUrl

ELSEWHERE = (ReadOnlyError, MovedError, ClusterDownError)
"""What a server answers that is the primary no more; MASTERDOWN is one of the last."""

LEAST_S = 0.01


class Primary(ABC):
    """Who can tell where the primary is, and in which order they are asked; safe for threads.

    Args:
        nodes: who is asked.
        asking: options of the connections to them.
    """

    ask: tuple[str, ...]
    """The question."""

    greets: ClassVar[bool]
    """Whether who was found must say itself that it is a primary."""

    def __init__(self, nodes: tuple[Address, ...], asking: dict[str, Any]) -> None:
        self._nodes = nodes
        self.asking = asking

    def find(self, within_s: float) -> Generator[tuple[Address, float], Any, Address]:
        """Whom to ask and for how long to wait; it is sent the answer, or the error instead.

        Each takes half of the time that is left at most, and who fails is asked last from then on.

        Raises:
            RedisError: nobody knows; where somebody denied the question, that.
        """
        until = time.monotonic() + within_s
        failures = []
        for node in self._nodes:
            answer = yield node, max(LEAST_S, (until - time.monotonic()) / 2)
            if not isinstance(answer, RedisError):
                found = self._read(answer, node)
                if found:
                    return found
                answer = f"{node[0]}:{node[1]} knows none"
            elif isinstance(answer, (AuthenticationError, NoPermissionError)):
                raise answer
            failures.append(str(answer))
            self._ask_last(node)
        # `patience` knows by the word "connecting" that nothing was sent.
        raise ConnectionError(f"Error connecting to {self}: {'; '.join(failures)}")

    def doubt(self) -> None:
        """Ask another first: what the last who answered knew was not so."""
        self._ask_last(self._nodes[0])

    def check(self, hello: Any) -> None:
        """Look at what the server says of itself.

        Raises:
            ConnectionError: it is a replica.
        """
        said = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
        if said["role"] != "master":
            self.doubt()
            raise ConnectionError(f"Error connecting to {self}: it is at a replica as yet")

    def _ask_last(self, node: Address) -> None:
        self._nodes = (*(other for other in self._nodes if other != node), node)

    @abstractmethod
    def _read(self, answer: Any, asked: Address) -> Address | None:
        """Where the primary is by an answer; None: it does not say."""


class SentinelPrimary(Primary):
    """The primary of a service that Sentinels watch."""

    greets = True

    def __init__(self, where: StoreUrl) -> None:
        super().__init__(where.nodes, where.asking)
        self.ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", where.service)

    def _read(self, answer: Any, asked: Address) -> Address | None:
        del asked
        return (answer[0], int(answer[1])) if answer else None

    def __str__(self) -> str:
        return f"the primary of {self.ask[-1]!r} that its Sentinels name"


class ClusterPrimary(Primary):
    """The node of a Cluster that has a key's slot."""

    greets = False  # a replica answers MOVED by itself
    ask = ("CLUSTER", "SLOTS")

    def __init__(self, where: StoreUrl, key: str) -> None:
        super().__init__(where.nodes, where.asking)
        self._seeds = where.nodes
        self._slot = key_slot(key.encode())

    def _read(self, answer: Any, asked: Address) -> Address | None:
        found, known = None, [asked]
        for first, last, *servers in answer:
            # A node that does not know its own address says none; "?" is one that nobody may know.
            there = [(host or asked[0], port) for host, port, *_ in servers if host != "?"]
            known += there
            if first <= self._slot <= last and there:
                found = there[0]
        self._nodes = tuple(dict.fromkeys((*known, *self._seeds)))
        return found

    def __str__(self) -> str:
        return f"the Cluster's node that has slot {self._slot}"


class TcpConnection(Connection):
    """A connection that finds the primary first, if there is something to find.

    It is closed when the server answers that it is the primary no more: where a name moves to
    another server, or a Sentinel's or Cluster's primary does, the next call finds it.

    Args:
        primary: who knows where it is; None: it is at `host`.
        **options: as redis-py's connection takes them.
    """

    asker: ClassVar[type[Connection]] = Connection

    def __init__(self, *, primary: Primary | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._within_s: float = options["socket_connect_timeout"]

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Find the primary and connect, both within the timeout for connecting."""
        if self._primary is not None and not self.is_connected:
            began = time.monotonic()
            self.host, self.port = self._find(self._primary)
            spent_s = time.monotonic() - began
            self.socket_connect_timeout = max(LEAST_S, self._within_s - spent_s)
        super().connect_check_health(*args, **options)

    def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        """Greet the server; one that Sentinels named must be a primary."""
        super().on_connect_check_health(*args, **options)
        if self._primary is not None and self._primary.greets:
            self.send_command("HELLO", check_health=False)
            self._primary.check(self.read_response())

    def read_response(self, *args: Any, **options: Any) -> Any:
        """An answer; after one that sends us elsewhere this connection is not used again."""
        try:
            return super().read_response(*args, **options)
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
    """The same over TLS."""

    asker = SSLConnection


class AsyncTcpConnection(AsyncConnection):
    """See `TcpConnection`."""

    asker: ClassVar[type[AsyncConnection]] = AsyncConnection

    def __init__(self, *, primary: Primary | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._within_s: float = options["socket_connect_timeout"]

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """See `TcpConnection`."""
        if self._primary is not None and not self.is_connected:
            began = time.monotonic()
            self.host, self.port = await self._find(self._primary)
            spent_s = time.monotonic() - began
            self.socket_connect_timeout = max(LEAST_S, self._within_s - spent_s)
        await super().connect_check_health(*args, **options)

    async def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        """See `TcpConnection`."""
        await super().on_connect_check_health(*args, **options)
        if self._primary is not None and self._primary.greets:
            await self.send_command("HELLO", check_health=False)
            self._primary.check(await self.read_response())

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """See `TcpConnection`."""
        try:
            return await super().read_response(*args, **options)
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
    """See `TlsConnection`."""

    asker = AsyncSSLConnection
