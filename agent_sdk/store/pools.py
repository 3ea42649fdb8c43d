"""Pools of connections that take whole ones back, and close the others; see `exchange`."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import redis
import redis.asyncio


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
        self._in_use_connections = WeakSet()

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
