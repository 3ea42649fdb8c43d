"""Index of the leases and waits that each key has over MCP, so that no list reads the pool."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import LeaseError
from agent_sdk.store.retry import in_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.aio import AsyncLeaseClient

MOST: Final = 256
"""Most tokens of a key; those that were named longest ago go first."""

KEPT_MS: Final = 14 * 86_400_000
"""Milliseconds for which the index outlives the last call: twice the longest lease's."""

YOUNG_MS: Final = 60_000
"""Milliseconds in which a token that the pool does not know may be that of a call under way."""


class KeyIndex:
    """Tokens by key, each with the time at which it was named last.

    Args:
        client: of the pool.
    """

    def __init__(self, client: AsyncLeaseClient) -> None:
        self._redis = client.redis
        self._keys = client.keys

    async def add(self, owner: str, token: str) -> None:
        """Note that a token was named. A store that is away is no error of the call that names it.

        Such a token is missing in lists until it is named again.
        """
        key = self._keys.mcp(owner)
        with suppress(LeaseError), in_words():
            pipe = self._redis.pipeline(transaction=False)
            pipe.zadd(key, {token: _now_ms()})
            pipe.pexpire(key, KEPT_MS)
            pipe.zrange(key, 0, -MOST - 1)
            *_, over = await pipe.execute()
            if over:
                await self._redis.zrem(key, *over)

    async def tokens(self, owner: str) -> dict[str, bool]:
        """Return the tokens of a key; True: named so lately that it may be on its way.

        Raises:
            LeaseError: the store is away, or denies it.
        """
        with in_words():
            found: Any = await self._redis.zrange(
                self._keys.mcp(owner), 0, MOST - 1, withscores=True
            )
        old_ms = _now_ms() - YOUNG_MS
        return {str(token): named_ms > old_ms for token, named_ms in found}

    async def drop(self, owner: str, tokens: Iterable[str]) -> None:
        """Forget tokens of what is over."""
        over = list(tokens)
        if over:
            with suppress(LeaseError), in_words():
                await self._redis.zrem(self._keys.mcp(owner), *over)


def _now_ms() -> int:
    return int(time.time() * 1000)
