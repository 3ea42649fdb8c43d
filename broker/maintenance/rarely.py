"""Connection for what is rarely asked of the server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis


@asynccontextmanager
async def one_connection(redis: Redis) -> AsyncIterator[Redis]:
    """Lend a client with a connection of its own, which is closed afterwards.

    A replica keeps two connections, for calls and for the event stream. The pool's other
    connections are left alone: another task may be about to use any of them.
    """
    async with redis.client() as one:
        try:
            yield one
        finally:
            if one.connection:
                await one.connection.disconnect()
