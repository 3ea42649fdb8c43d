"""Sums of use as one look at the key space shows them: each end of a lease is in them once."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.queue_audit import after
from tests.usage import numbers, words

if TYPE_CHECKING:
    import redis

    from agent_sdk.keys import Keys

MOST_ENDED = 1024

ENDS = ("released", "expired", "revoked", "preempted")


def audit_usage(
    client: redis.Redis, keys: Keys, names: list[str], records: dict[str, dict[str, str]]
) -> None:
    """Check the sums by who, by where and in all against each other, and against the counters.

    They are read in one step: a broker's reaper may fold lines at any moment.
    """
    base = keys.base
    used = after(f"{base}:use:", names)
    days = [name for name in after(f"{base}:usage:", names) if not name.endswith(":hosts")]
    sums = [keys.usage_total, *map(keys.usage, days), *map(keys.usage_of_hosts, days)]
    spoilt = {client.type(key) for key in sums} - {"hash", "none"}
    with client.pipeline() as look:
        look.lrange(keys.ended, 0, -1)
        look.hgetall(keys.stats)
        look.hget(keys.pool, "released")
        for uuid in used:
            look.hkeys(keys.use(uuid))
        for key in [] if spoilt else sums:
            look.hgetall(key)
        lines, stats, released, *rows = look.execute()
    assert len(lines) <= MOST_ENDED, "usage: lines without a bound"
    known = {words(line)["token"] for line in lines}
    known |= {token for token, row in records.items() if row["state"] == "active"}
    for uuid in used:
        strangers = set(rows.pop(0)) - known
        assert not strangers, f"usage: {uuid} is used by {strangers}"
    if spoilt or "folds_failed" in stats:
        return  # a hand has spoilt a key, which goes without what the others have
    total, of_days, of_hosts = rows[0], rows[1 : 1 + len(days)], rows[1 + len(days) :]
    teams = {team: line for team, line in total.items() if not team.startswith("peak ")}
    everything = _sum([teams])
    who, where = _sum(of_days), _sum(of_hosts)
    for name in ("leases", "held_ms", "mb_ms"):
        assert who[name] == where[name], f"usage: {name} by who and by where"
        assert who[name] <= everything[name], f"usage: {name} of days and in all"
    counted = int(released or 0) + sum(
        int(stats.get(prefix + end, 0)) for end in ENDS for prefix in ("", "cpu_")
    )
    assert everything["leases"] + len(lines) == counted, "usage: ends and counters"


def _sum(hashes: list[dict[str, str]]) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for line in (line for rows in hashes for line in rows.values()):
        for name, number in numbers(line).items():
            sums[name] += number
    return sums
