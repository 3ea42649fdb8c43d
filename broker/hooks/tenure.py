"""Tenure of the one process that delivers: a key with a TTL, and writes that need it.

A write of progress passes only while the key names this tenure, so a process that was stopped and
comes back cannot take a hook's cursor back.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from redis.exceptions import WatchError

from agent_sdk.clock import local_now
from broker.hooks.hook import hook_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from agent_sdk.keys import Keys
    from broker.hooks.hook import Hook

TTL_S: Final = 5.0
"""Seconds after which another process takes over from one that has died."""

MARGIN_S: Final = 0.5
"""Seconds before that in which nothing is sent any more."""

TRIES: Final = 20

KEPT_EVENTS: Final = 10_000
"""Number of events that the verbs keep in the stream."""

DISABLED_EVENT: Final = "hook_disabled"

DISABLED_FIELDS: Final = ("hook", "reason")


class Superseded(Exception):
    """End of a delivery: another process delivers, or the hook is another one or gone."""


class Tenure:
    """Right to deliver.

    Args:
        redis: a client of the store, for asyncio.
        keys: the pool's.
        replica: the name of this process among the replicas.
    """

    def __init__(self, redis: Any, keys: Keys, replica: str) -> None:
        self._redis = redis
        self._keys = keys
        self._replica = replica
        self._name = ""
        self._until = 0.0

    @property
    def left_s(self) -> float:
        """Seconds for which this process may still send; 0: it may not."""
        return max(0.0, self._until - local_now()) if self._name else 0.0

    async def take(self) -> bool:
        """Take the right, or keep it for longer; return whether this process has it."""
        asked_at = local_now()
        ttl_ms = round(TTL_S * 1000)
        if not self._name:
            name = f"{self._replica}:{uuid4().hex[:8]}"
            if not await self._redis.set(self._keys.hooks_sender, name, nx=True, px=ttl_ms):
                return False
            self._name = name
        else:
            try:
                async with self._mine() as pipe:
                    pipe.pexpire(self._keys.hooks_sender, ttl_ms)
                    await pipe.execute()
            except (Superseded, WatchError):
                self._name = ""
                return False
        self._until = asked_at + TTL_S - MARGIN_S
        return True

    async def give_up(self) -> None:
        """Let another process deliver at once."""
        if not self._name:
            return
        with suppress(Superseded, WatchError):
            async with self._mine() as pipe:
                pipe.delete(self._keys.hooks_sender)
                await pipe.execute()
        self._name = ""

    async def now_ms(self) -> int:
        """Return the time on Redis's clock."""
        seconds, micros = await self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    async def read(self, hook: Hook) -> Hook:
        """Return a hook as it is now.

        Raises:
            Superseded: the hook is not that one any more.
        """
        found = hook_of(hook.name, await self._redis.hgetall(self._keys.hook(hook.name)))
        if found is None or found.life != hook.life:
            raise Superseded
        return found

    async def write(self, hook: Hook, changes: Mapping[str, str | int], disabled: str = "") -> None:
        """Write a hook's progress; `disabled`: its reason is written too, and told as an event.

        Raises:
            Superseded: this process delivers no more, or the hook is not that one any more.
        """
        key = self._keys.hook(hook.name)
        for _ in range(TRIES):
            try:
                async with self._mine(key) as pipe:
                    if await pipe.hget(key, "life") != hook.life:
                        raise Superseded
                    pipe.multi()
                    pipe.hset(
                        key, mapping={**changes, **({"disabled": disabled} if disabled else {})}
                    )
                    if disabled:
                        told = dict(zip(DISABLED_FIELDS, (hook.name, disabled), strict=True))
                        pipe.xadd(
                            self._keys.events, {"event": DISABLED_EVENT, **told},
                            maxlen=KEPT_EVENTS, approximate=True,
                        )  # fmt: skip
                    await pipe.execute()
            except WatchError:
                await asyncio.sleep(0)
            else:
                return
        raise Superseded

    @asynccontextmanager
    async def _mine(self, *watched: str) -> AsyncIterator[Any]:
        """Enter a block whose transaction passes only while this process has the right."""
        async with self._redis.pipeline(transaction=True) as pipe:
            await pipe.watch(self._keys.hooks_sender, *watched)
            if not self._name or await pipe.get(self._keys.hooks_sender) != self._name:
                raise Superseded
            if not watched:
                pipe.multi()
            yield pipe
