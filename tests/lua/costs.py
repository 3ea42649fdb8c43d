"""Commands that a call runs, by Redis's own counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis


DAY_MS = 86_400_000


OURS = ("evalsha", "fcall", "info", "config|resetstat")
"""Commands that the test itself sends."""


def commands(client: redis.Redis, call: Callable[[], list[Any]]) -> tuple[list[Any], int]:
    """The reply, and how many commands the script ran."""
    client.config_resetstat()
    reply = call()
    stats: Any = client.info("commandstats")
    names = {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}
    return reply, sum(calls for name, calls in names.items() if name not in OURS)
