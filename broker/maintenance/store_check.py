"""Fitness of a server: new enough, without eviction, writable."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError, ResponseError

from agent_sdk.store.connect_errors import hopeless
from broker.maintenance.rarely import one_connection

if TYPE_CHECKING:
    from redis.asyncio import Redis

OLDEST_REDIS, OLDEST_VALKEY = (7, 0), (7, 2)

NEARLY_FULL: Final = 0.9
"""Part of its limit from which on a store's memory is worth a warning."""


class StoreMemory(NamedTuple):
    """Memory of a server, bytes. `limit`: its maxmemory; 0: it has none."""

    used: int
    limit: int

    @property
    def nearly_full(self) -> bool:
        """True if new leases may soon be refused."""
        return self.limit > 0 and self.used >= NEARLY_FULL * self.limit


async def problem_of(redis: Redis) -> str | None:
    """Return a sentence about an obstacle to leases on this server, or None.

    A denied INFO is no problem: the verbs themselves will tell.
    """
    try:
        async with one_connection(redis) as one:
            info: dict[str, Any] = await one.info()
            info |= await one.info("scriptingengines")  # only Valkey has this section
    except ResponseError:
        return None
    except RedisError as error:
        why = hopeless(error)
        return f"Redis cannot be reached: {f'{why} ({error})' if why else error}"
    return (
        _sentinel(info)
        or _too_old(info)
        or _no_lua(info)
        or _evicts(info)
        or _read_only(info)
        or _full(info)
    )


async def memory_of(redis: Redis) -> StoreMemory | None:
    """Return the memory of this server; None: it does not tell."""
    try:
        async with one_connection(redis) as one:
            return memory_in(await one.info("memory"))
    except RedisError:
        return None


def memory_in(info: dict[str, Any]) -> StoreMemory | None:
    """Return the memory that an INFO tells; None: it tells none."""
    if "used_memory" not in info:
        return None
    return StoreMemory(int(info["used_memory"]), int(info.get("maxmemory", 0)))


def _sentinel(info: dict[str, Any]) -> str | None:
    if info.get("redis_mode") != "sentinel":
        return None
    port = info.get("tcp_port")
    return f"this is a Sentinel: REDIS_URL=redis+sentinel://HOST:{port},.../SERVICE finds its store"


def _too_old(info: dict[str, Any]) -> str | None:
    valkey = info.get("valkey_version")
    name, oldest = ("Valkey", OLDEST_VALKEY) if valkey else ("Redis", OLDEST_REDIS)
    said = str(valkey or info.get("redis_version", ""))
    found = re.match(r"(\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) < oldest:
        wanted = ".".join(map(str, oldest))
        return f"{name} {said} is too old: {name} {wanted} or newer is needed"
    return None


def _no_lua(info: dict[str, Any]) -> str | None:
    if info.get("engines_count") != 0:
        return None
    return "this Valkey has no Lua engine, in which the verbs run: load its module lua"


def _evicts(info: dict[str, Any]) -> str | None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return (
        f"maxmemory-policy is {policy}, so Redis would throw leases away when memory is short: "
        "CONFIG SET maxmemory-policy noeviction"
    )


def _read_only(info: dict[str, Any]) -> str | None:
    if info.get("role") != "slave":
        return None
    master = f"{info.get('master_host')}:{info.get('master_port')}"
    return (
        f"this server is a read-only replica of {master}: set REDIS_URL to the primary, or to "
        "what finds it: redis+sentinel://HOST,.../SERVICE, redis+cluster://HOST,..."
    )


def _full(info: dict[str, Any]) -> str | None:
    memory = memory_in(info)
    if memory is None or not 0 < memory.limit <= memory.used:
        return None
    return (
        f"Redis is at maxmemory ({info.get('maxmemory_human')}), so no new leases fit: "
        "holders go on; raise maxmemory"
    )
