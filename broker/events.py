"""The pool's stream of events, read once for all of this replica."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_sdk import Store

    Listener = Callable[[str, Mapping[str, str]], None]

log = logging.getLogger(__name__)

BLOCK_S = 3.0

ANSWER_S = 2.0

RETRY_S = 0.5

PAGE = 1000


class Stream:
    """Reads from the stream's end at the start; after a failure from where it was.

    Args:
        store: where the pool is.
        key: the stream's.
        listener: called with the id and the fields of each event, in order.
    """

    def __init__(self, store: Store, key: str, listener: Listener) -> None:
        self._store = replace(store, timeout_s=BLOCK_S + ANSWER_S)
        self._key = key
        self._listener = listener
        self._last: str | None = None

    async def run(self) -> None:
        """Until cancelled, on a connection of its own."""
        redis: Any = self._store.connect_async()
        try:
            while True:
                try:
                    await self._read(redis)
                except RedisError as error:
                    log.debug("the stream cannot be read: %s", error)
                    await asyncio.sleep(RETRY_S)
        finally:
            await redis.aclose()

    async def _read(self, redis: Any) -> None:
        if self._last is None:
            newest = await redis.xrevrange(self._key, count=1)
            self._last = newest[0][0] if newest else "0-0"
        found = await redis.xread({self._key: self._last}, count=PAGE, block=round(BLOCK_S * 1000))
        for _, events in found or ():
            for name, fields in events:
                self._last = name
                self._listener(name, fields)
