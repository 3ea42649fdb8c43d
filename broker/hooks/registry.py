"""Registry of a pool's hooks in Redis, for operators and for the sender."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from agent_sdk.errors import error_for
from agent_sdk.state.events import START, order
from agent_sdk.state.readings import check_schema
from agent_sdk.store.retry import in_words
from broker.hooks.hook import MOST, Hook, hook_of
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from agent_sdk.keys import Keys

NO_STREAM = "no such key"


class StreamEnd(NamedTuple):
    """End of the stream of events.

    Attributes:
        id: of the last event.
        ordinal: how many events it has had.
        length: how many of them it still has.
        first: the id of the oldest of these.
    """

    id: str = START
    ordinal: int = 0
    length: int = 0
    first: str = START

    def backlog(self, hook: Hook) -> int:
        """Return how many events of the stream a hook has before it."""
        if order(self.id) <= order(hook.cursor):
            return 0
        return max(0, min(self.ordinal - hook.ordinal, self.length))


class HooksSeen(NamedTuple):
    """All hooks, by name; the end of the stream; and if a broker delivers to them."""

    hooks: tuple[Hook, ...] = ()
    end: StreamEnd = StreamEnd()
    served: bool = False


class Registry:
    """Hooks of one pool.

    Args:
        redis: a client of the store, for asyncio.
        keys: the pool's.
    """

    def __init__(self, redis: Any, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def seen(self) -> HooksSeen:
        """Read all hooks."""
        with in_words():
            names = sorted(await self._redis.smembers(self._keys.hooks))[:MOST]
            if not names:
                return HooksSeen()
            pipe = self._redis.pipeline(transaction=False)
            pipe.hget(self._keys.pool, "schema")
            pipe.exists(self._keys.hooks_sender)
            pipe.xinfo_stream(self._keys.events)
            for name in names:
                pipe.hgetall(self._keys.hook(name))
            schema, served, info, *rows = await pipe.execute(raise_on_error=False)
            for each in (schema, served, *rows):
                if isinstance(each, RedisError):
                    raise each
            end = end_of(info)
        check_schema(schema)
        found = (hook_of(name, row) for name, row in zip(names, rows, strict=True))
        return HooksSeen(tuple(filter(None, found)), end, bool(served))

    async def now_ms(self) -> int:
        """Return the time on Redis's clock."""
        with in_words():
            seconds, micros = await self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    async def find(self, name: str) -> Hook:
        """Read a hook.

        Raises:
            Refused: there is none of that name.
        """
        with in_words():
            found = hook_of(name, await self._redis.hgetall(self._keys.hook(name)))
            if found is not None:
                return found
            names = await self._redis.smembers(self._keys.hooks)
        raise error_for("hook_unknown", f"no hook is called {name}; {_others(name, names)}")

    async def add(self, hook: Hook) -> Hook:
        """Write a new hook, which begins with the next event.

        Raises:
            Refused: the name is taken, or there are as many as there may be.
        """
        now_ms = await self.now_ms()
        with in_words():
            if await self._redis.scard(self._keys.hooks) >= MOST:
                raise error_for("limit", f"a pool has at most {MOST} hooks: remove one")
            pipe = self._redis.pipeline(transaction=False)
            pipe.xinfo_stream(self._keys.events)
            end = end_of((await pipe.execute(raise_on_error=False))[0])
            made = replace(
                hook, created_ms=now_ms, life=secrets.token_hex(4),
                cursor=end.id, ordinal=end.ordinal,
            )  # fmt: skip
            key = self._keys.hook(made.name)
            if not await self._redis.hsetnx(key, "url", made.url):
                said = f"a hook is called {made.name} already: remove it, or choose another name"
                raise error_for("conflict", said)
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(key, mapping=made.stored)
            pipe.sadd(self._keys.hooks, made.name)
            await pipe.execute()
        return made

    async def remove(self, name: str) -> None:
        """Remove a hook; what is on its way to it may still arrive.

        Raises:
            Refused: there is none of that name.
        """
        await self.find(name)
        with in_words():
            pipe = self._redis.pipeline(transaction=True)
            pipe.srem(self._keys.hooks, name)
            pipe.delete(self._keys.hook(name))
            await pipe.execute()

    async def enable(self, name: str) -> Hook:
        """Let a hook be tried again at once, from the event after its last.

        Raises:
            Refused: there is none of that name.
        """
        found = await self.find(name)
        anew = {"disabled": "", "attempts": 0, "failing_since_ms": 0, "life": secrets.token_hex(4)}
        with in_words():
            await self._redis.hset(self._keys.hook(name), mapping=anew)
        return replace(found, **anew)  # type: ignore[arg-type] # each has its field's type

    async def ask_test(self, name: str) -> str:
        """Ask the sender for a test event; return the name of the test.

        Raises:
            Refused: there is no hook of that name.
        """
        await self.find(name)
        test = secrets.token_hex(4)
        with in_words():
            await self._redis.hset(self._keys.hook(name), "test", test)
        return test

    async def is_served(self) -> bool:
        """Tell whether a broker delivers to the hooks now."""
        with in_words():
            return bool(await self._redis.exists(self._keys.hooks_sender))


def _others(name: str, names: set[str]) -> str:
    return did_you_mean(name, names) or (
        f"there are: {', '.join(sorted(names))}" if names else "there are none"
    )


def end_of(info: Any) -> StreamEnd:
    """Return the end of the stream from the answer of XINFO, which fails without a stream."""
    if isinstance(info, ResponseError) and NO_STREAM in str(info):
        return StreamEnd()
    if isinstance(info, Exception):
        raise info
    oldest = info["first-entry"]
    return StreamEnd(
        info["last-generated-id"], info["entries-added"], info["length"],
        oldest[0] if oldest else START,
    )  # fmt: skip
