"""Pools of connections that take whole ones back, and close the others; see `exchange`."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.maint_notifications import MaintNotificationsConfig

from agent_sdk.clock import local_now
from agent_sdk.fork import renew_in_child
from agent_sdk.store.handler_errors import raise_of_handler
from agent_sdk.store.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from weakref import ref


NO_NOTICES = MaintNotificationsConfig(enabled=False)
"""Redis Enterprise's notices of maintenance: asking for them costs a round trip of each connection.

Another server refuses, which redis-py logs: its logging's lock would be taken in the keeper's
thread as in the caller's.
"""


class _InUse:
    """Connections in use, as long as a caller refers to them.

    Attributes:
        refs: their weak references: adding and removing one is a single step.
    """

    def __init__(self) -> None:
        self.refs: set[ref[Any]] = set()

    def add(self, connection: Any) -> None:
        """Add a connection."""
        self.refs.add(connection.own_ref)

    def remove(self, connection: Any) -> None:
        """Remove a connection; KeyError: it is not among them."""
        self.refs.remove(connection.own_ref)

    def __iter__(self) -> Iterator[Any]:
        """Yield the living ones."""
        for each in list(self.refs):
            if (connection := each()) is not None:
                yield connection
            else:
                self.refs.discard(each)

    def __len__(self) -> int:
        """Return their number."""
        return len(list(iter(self)))


class Pool(redis.ConnectionPool):
    """Pool that closes connections which come back in the middle of an exchange.

    If a caller was interrupted before it gave its connection back, the connection is closed with
    the caller's last reference, and takes no place of `max_connections`.
    """

    _available_connections: list[Any]
    _in_use_connections: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(maint_notifications_config=NO_NOTICES, **options)
        renew_in_child(self)

    def reset(self) -> None:
        """Drop all connections; a forked child has none of its parent's."""
        # redis-py takes it here, and a thread of the parent may have had it.
        self._lock = threading.RLock()
        super().reset()
        self._in_use_connections = _InUse()
        self._together = Together()
        self._main = threading.main_thread().ident  # in a child it is the thread that forked

    def ask(self, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Send commands, and return their replies; see `Counting.ask` and `Together`."""
        if threading.get_ident() == self._main:
            return self.ask_alone(packed, marks, now)
        return self._together.ask(self.ask_alone, packed, marks, now)

    def ask_alone(self, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Send commands over one connection, and return their replies.

        A connection that was used a moment ago is taken and put back without redis-py's questions,
        and without the lock: an interrupt between two steps loses the connection at most.
        """
        there, in_use = self._available_connections, self._in_use_connections.refs
        try:
            connection = there.pop()
        except IndexError:
            connection = self.get_connection()
        else:
            if now < connection.ready_until:
                in_use.add(connection.own_ref)
            else:
                there.append(connection)
                connection = self.get_connection()
        try:
            replies: list[Any] = connection.ask(packed, marks, now)
            return replies
        finally:
            self._put_back(connection, now)

    def post(self, packed: bytes, mark: str, told: Callable[[Any], object], now: float) -> bool:
        """Send a command and wait for no reply; see `Counting.post`.

        Return False if it was not sent: no connection is at hand.
        """
        there = self._available_connections
        try:
            connection = there.pop()
        except IndexError:
            return False
        if not connection.takes_posts:
            there.append(connection)
            return False
        self._in_use_connections.add(connection)
        try:
            connection.post(packed, mark, told, now)
            return True
        finally:
            self._put_back(connection, now)

    def collect(self, within_s: float = math.inf) -> None:
        """Read the replies to what was posted, on connections that no call uses.

        within_s: seconds, for all of them together, after which the rest is left unread.
        """
        until = local_now() + within_s
        there = self._available_connections
        for connection in [each for each in list(there) if each.posted]:
            try:
                there.remove(connection)
            except ValueError:  # a call has just taken it, and reads them
                continue
            self._in_use_connections.add(connection)
            try:
                connection.collect(max(0.0, until - local_now()))
            except redis.RedisError as error:
                raise_of_handler(error)
                return  # it is closed; the others may have to wait as long
            finally:
                self.release(connection)

    def _put_back(self, connection: Any, now: float) -> None:
        """Take a connection back, without redis-py's questions if it was used a moment ago."""
        if now < connection.ready_until:
            in_use = self._in_use_connections.refs
            if connection.own_ref in in_use:
                in_use.remove(connection.own_ref)
                self._available_connections.append(connection)
        else:
            self.release(connection)

    def hang_up(self) -> None:
        """End the waiting of all connections; from any thread."""
        for connection in list(self._in_use_connections):
            connection.hang_up()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the idle connections, and end the waiting of the others: their calls close them.

        A call whose connection another thread closed would fail in ways that are none of a store's.
        """
        if inuse_connections:
            for connection in self._in_use_connections:
                connection.mark_for_reconnect()
                connection.hang_up()
        there = self._available_connections
        with suppress(IndexError):  # no call takes one that was taken here
            while True:
                there.pop().disconnect()

    def make_connection(self) -> Any:
        """Make one more connection."""
        known = len(self._available_connections) + len(self._in_use_connections)
        self._created_connections = known
        return super().make_connection()

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        if connection.is_connected and not connection.clean:
            connection.disconnect()
        super().release(connection)


class AsyncPool(redis.asyncio.ConnectionPool):
    """Pool of asyncio that closes connections which come back in the middle of an exchange."""

    def __init__(self, **options: Any) -> None:
        super().__init__(maint_notifications_config=NO_NOTICES, **options)

    async def release(self, connection: Any) -> None:
        """Take a connection back; see `Pool`."""
        if connection.is_connected and not connection.clean:
            await connection.disconnect(nowait=True)
        await super().release(connection)
