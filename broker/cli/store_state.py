"""Findings of `gpu-broker doctor` about the store: reachable, fit, durable, on the same clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from agent_sdk.keys import Keys
from agent_sdk.scripts.library import own_library
from agent_sdk.settings import read_settings
from agent_sdk.store.store import Store
from broker.cli.finding import Diagnosis, Severity
from broker.maintenance.advisories import advisory
from broker.maintenance.store_check import memory_in, problem_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

SKEW_S: Final = 2.0
"""Largest difference between this machine's clock and the store's that is not worth a note."""

NAMELESS: Final = Diagnosis(
    "INFO does not tell which server this is, so data that went back may be noticed late: where the"
    " verbs run as scripts, the pool grants nothing for 10 s after each silence of 1.5 s",
    "allow it to every user of the pool (ACL SETUSER NAME +info|server; no rename-command INFO),"
    " and keep one gpu-broker serve running",
)
"""Finding for a server that does not tell its run_id, or not to us."""


async def store_state() -> tuple[dict[str, str], list[Diagnosis]]:
    """Return the facts about the server at the store's address, with its problems.

    Raises:
        ValueError: a setting of the store cannot be used.
    """
    settings = read_settings()
    settings.check_state_dir()
    base, url = Keys(settings.pool).base, settings.masked_url
    redis = Store(settings.store_url, key=base).connect_async()
    try:
        if broken := await _broken(redis, embedded=settings.embedded):
            return {"store": url}, [broken]
        info, denied = await _told(redis)
        verbs, skew = await _verbs(redis, base), await _skew(redis)
    finally:
        await redis.aclose()
    findings = [*([] if info.get("run_id") else [NAMELESS]), *skew]
    if denied:
        return {"store": url, "server": f"not told: {denied}", "verbs": verbs}, findings
    durable = bool(info.get("aof_enabled"))
    return {
        "store": url,
        "server": _server(info),
        "verbs": verbs,
        "memory": _memory(info),
        "persistence": "AOF on" if durable else "AOF off",
    }, findings + _room(info) + _holes(advisory(info)) + ([] if durable else [FORGETFUL])


FORGETFUL: Final = Diagnosis(
    "the store keeps no append-only file: its restart forgets every lease, and the pool grants"
    " nothing until the holders have come forward",
    "redis-cli CONFIG SET appendonly yes, and appendonly yes in its configuration",
    Severity.NOTE,
)


async def _broken(redis: Redis, *, embedded: bool) -> Diagnosis | None:
    """Return findings about obstacles to leases on this server."""
    try:
        await redis.ping()
    except AuthenticationError as error:
        return Diagnosis(
            f"the store refuses our password: {error}",
            "correct the user and the password in REDIS_URL=redis://USER:PASSWORD@HOST:PORT",
            Severity.BROKEN,
        )
    except RedisError:
        pass  # `problem_of` has the sentence
    problem = await problem_of(redis)
    if problem is None:
        return None
    remedy = "start one: gpu-broker serve; or name its server in REDIS_URL"
    if not embedded:
        remedy = "start that server, or name one that suits in REDIS_URL"
    return Diagnosis(problem, remedy, Severity.BROKEN)


async def _verbs(redis: Redis, base: str) -> str:
    """Return the way in which calls reach the server; the key leads to a Cluster's node."""
    library = own_library()
    try:
        await redis.fcall(library.function("version"), 1, base)
    except NoPermissionError:
        return "scripts; this user may call no functions"
    except ResponseError:
        return "scripts; a serve or host of this version loads functions, which cost less"
    return f"functions, {library.name}"


async def _skew(redis: Redis) -> list[Diagnosis]:
    """Return a finding if this machine's clock differs from the store's."""
    before_s = time.time()
    try:
        seconds, microseconds = await redis.time()
    except ResponseError:
        return []
    store_s, after_s = seconds + microseconds / 1e6, time.time()
    skew_s = max(before_s - store_s, store_s - after_s)
    if skew_s < SKEW_S:
        return []
    ahead = "ahead of" if before_s > store_s else "behind"
    return [
        Diagnosis(
            f"this machine's clock is {skew_s:.0f} s {ahead} the store's",
            "keep both with NTP; leases go by the store's clock alone, but logs do not",
            Severity.NOTE,
        )
    ]


async def _told(redis: Redis) -> tuple[dict[str, Any], str]:
    """Return the server's INFO, and the reason if it is incomplete."""
    try:
        return await redis.info(), ""
    except ResponseError as error:
        denied = str(error)
    try:
        return await redis.info("server"), denied  # enough for the scripts
    except ResponseError:
        return {}, denied


def _memory(info: dict[str, Any]) -> str:
    limit = f" of {info['maxmemory_human']}" if info.get("maxmemory") else ""
    return f"{info.get('used_memory_human')}{limit}, policy {info.get('maxmemory_policy')}"


def _room(info: dict[str, Any]) -> list[Diagnosis]:
    """Return a finding if the store's memory is nearly used up."""
    memory = memory_in(info)
    if memory is None or not memory.nearly_full:
        return []
    said = f"{info.get('used_memory_human')} of {info.get('maxmemory_human')}"
    remedy = "raise maxmemory, or keep fewer days of use: gpu-broker policy set usage_days=90"
    return [Diagnosis(f"the store is nearly full, {said}: then it takes no new leases", remedy)]


def _holes(known: str | None) -> list[Diagnosis]:
    if known is None:
        return []
    remedy = "upgrade it, unless your distribution has mended it: SECURITY.md says more"
    return [Diagnosis(known, remedy, Severity.NOTE)]


def _server(info: dict[str, Any]) -> str:
    """Return the server's name; behind Sentinels or in a Cluster it may change."""
    name = "Valkey" if info.get("valkey_version") else "Redis"
    version = info.get("valkey_version") or info.get("redis_version")
    port = f", port {info['tcp_port']}" if info.get("tcp_port") else ""
    return f"{name} {version}{port}, replicas: {info.get('connected_slaves', 0)}"
