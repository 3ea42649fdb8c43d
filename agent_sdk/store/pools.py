"""Pools of connections that take whole ones back, and close the others; see `exchange`."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from weakref import ref


class _InUse:
    """Connections in use, as long as a caller refers to them; all steps are single ones."""

    def __init__(self) -> None:
        self._refs: set[ref[Any]] = set()

    def add(self, connection: Any) -> None:
        """Add a connection."""
        self._refs.add(connection.own_ref)

    def remove(self, connection: Any) -> None:
        """Remove a connection; KeyError: it is not among them."""
        self._refs.remove(connection.own_ref)

    def discard(self, connection: Any) -> None:
        """Remove a connection if it is among them."""
        self._refs.discard(connection.own_ref)

    def __iter__(self) -> Iterator[Any]:
        """Yield the living ones."""
        for each in list(self._refs):
            if (connection := each()) is not None:
                yield connection
            else:
                self._refs.discard(each)

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

    def reset(self) -> None:
        """Drop all connections."""
        super().reset()
        self._in_use_connections = _InUse()

    def ask(self, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Send commands over one connection, and return their replies; see `Counting.ask`.

        A connection that was used a moment ago is taken and put back without redis-py's questions.
        """
        connection = self._take(now)
        try:
            replies: list[Any] = connection.ask(packed, marks, now)
            return replies
        finally:
            if connection.fresh(now) and not connection.should_reconnect():
                self._in_use_connections.discard(connection)
                self._available_connections.append(connection)
            else:
                self.release(connection)

    def _take(self, now: float) -> Any:
        """Take an idle connection in single steps, without the lock: an interrupt loses none."""
        there = self._available_connections
        if there and self.pid == os.getpid():
            with suppress(IndexError):
                connection = there.pop()
                if connection.fresh(now):
                    self._in_use_connections.add(connection)
                    return connection
                there.append(connection)
        return self.get_connection()

    def hang_up(self) -> None:
        """End the waiting of all connections; from any thread."""
        for connection in list(self._in_use_connections):
            connection.hang_up()

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

    async def release(self, connection: Any) -> None:
        """Take a connection back; see `Pool`."""
        if connection.is_connected and not connection.clean:
            await connection.disconnect(nowait=True)
        await super().release(connection)
