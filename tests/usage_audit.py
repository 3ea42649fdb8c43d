"""Sums of use as one look at the key space shows them: each end of a lease is in them once."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.queue_audit import after
from tests.usage import numbers, words

if TYPE_CHECKING:
    import redis

    from agent_sdk.keys import Keys

MOST_ENDED = 256

ENDS = ("released", "expired", "revoked", "preempted")


def audit_usage(
    client: redis.Redis, keys: Keys, names: list[str], records: dict[str, dict[str, str]]
) -> None:
    """Check the sums by who, by where and in all against each other, and against the counters."""
    base = keys.base
    lines: Any = client.lrange(keys.ended, 0, -1)
    assert len(lines) <= MOST_ENDED, "usage: lines without a bound"
    ended = {words(line)["token"] for line in lines}
    known = {*ended, *(token for token, row in records.items() if row["state"] == "active")}
    for uuid in after(f"{base}:use:", names):
        strangers = set(client.hkeys(keys.use(uuid))) - known
        assert not strangers, f"usage: {uuid} is used by {strangers}"
    stats: Any = client.hgetall(keys.stats)
    days = [name for name in after(f"{base}:usage:", names) if not name.endswith(":hosts")]
    sums = [keys.usage_total, *map(keys.usage, days), *map(keys.usage_of_hosts, days)]
    if "folds_failed" in stats or {client.type(key) for key in sums} - {"hash", "none"}:
        return  # a hand has spoilt a key, which goes without what the others have
    who, where = defaultdict(int), defaultdict(int)
    for day in days:
        _add(who, client.hgetall(keys.usage(day)))
        _add(where, client.hgetall(keys.usage_of_hosts(day)))
    total: Any = client.hgetall(keys.usage_total)
    everything: dict[str, int] = defaultdict(int)
    _add(everything, {team: line for team, line in total.items() if not team.startswith("peak ")})
    for name in ("leases", "held_ms", "mb_ms"):
        assert who[name] == where[name], f"usage: {name} by who and by where"
        assert who[name] <= everything[name], f"usage: {name} of days and in all"
    counted = int(client.hget(keys.pool, "released") or 0) + sum(
        int(stats.get(prefix + end, 0)) for end in ENDS for prefix in ("", "cpu_")
    )
    assert everything["leases"] + len(lines) == counted, "usage: ends and counters"


def _add(sums: dict[str, int], rows: Any) -> None:
    for line in rows.values():
        for name, number in numbers(line).items():
            sums[name] += number
