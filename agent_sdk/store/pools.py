"""Pools of connections that take back what is whole, and close the rest; see `exchange`."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import redis
import redis.asyncio


class Pool(redis.ConnectionPool):
    """A pool that closes what comes back in the middle of an exchange.

    A connection whose caller was interrupted before it could give it back is closed with the
    caller's last reference, and takes no place of `max_connections`.
    """

    _available_connections: list[Any]
    _in_use_connections: Any

    def reset(self) -> None:
        """Have no connections."""
        super().reset()
        self._in_use_connections = WeakSet()

    def hang_up(self) -> None:
        """End what its connections wait for; from any thread."""
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
    """The same for asyncio."""

    async def release(self, connection: Any) -> None:
        """See `Pool`."""
        if connection.is_connected and not connection.clean:
            await connection.disconnect(nowait=True)
        await super().release(connection)
