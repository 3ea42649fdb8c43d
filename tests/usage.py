"""Reckoning of use that knows nothing of the sums: from what the event stream says happened."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.pools import device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.pools import Pool

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
LATE_MS = 12_001
"""After so long a lease's hosts have said the last of it."""

NOON_MS = int(datetime(2100, 3, 1, 12, tzinfo=UTC).timestamp()) * 1000
"""A time after the server's own: the pool's clock never goes back."""

TODAY = "2100-03-01"


ENDS = {"released", "expired", "revoked", "preempted"}
"""Events that end a lease."""


def day_of(at_ms: int) -> str:
    """The day of a moment, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def numbers(line: str) -> dict[str, int]:
    """The numbers of a line of words."""
    pairs = (part.partition("=") for part in line.split(" "))
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def sums(pool: Pool, day: str, where: str = "") -> dict[str, dict[str, int]]:
    """The sums of a day; `where`: `:hosts`, or of teams, agents and models."""
    return {name: numbers(line) for name, line in pool.hash(f"usage:{day}{where}").items()}


def history(pool: Pool) -> list[dict[str, str]]:
    """The finished leases that are remembered, the oldest first."""
    found: Any = pool.redis.xrange(pool.keys.history)
    return [words(entry["lease"]) for _, entry in found]


def words(line: str) -> dict[str, str]:
    """The words of a finished lease that are not empty; its host and its model among them."""
    said, _, where = line.rpartition(" on ")
    host, _, model = where.partition("|")
    pairs = (part.partition("=")[::2] for part in said.split(" "))
    return {name: value for name, value in pairs if value} | {"host": host, "model": model}


def let(pool: Pool, ms: int) -> int:
    """Let time pass in steps that are no silence; the time after it."""
    while ms > 9000:
        pool.skew(9000)
        pool.reap()
        ms -= 9000
    pool.skew(ms)
    return int(pool.reap()[1])


def use(pool: Pool, uuid: str, *said_of: str) -> None:
    """Have the host say what it has seen of leases on a device."""
    pool.report(((uuid, {"same": 1, "state": "ok", "used_mb": 0, "use": ",".join(said_of)}),),
                deadline_ms=DAY_MS)  # fmt: skip


def leap(pool: Pool, ms: int) -> None:
    """Let a long time pass, with a report each half of a day."""
    for left_ms in range(ms, -1, -DAY_MS // 2):
        pool.skew(min(left_ms, DAY_MS // 2))
        pool.report(
            (device("gpu-a", 8000), device("gpu-b", 8000, index=1, name="m2", model="m2")),
            deadline_ms=DAY_MS,
        )


def at_noon(pool: Pool) -> None:
    """Put the clock in the test's hand, at NOON_MS, beside two GPUs of 8,000 MiB: m1 and m2."""
    pool.redis.set(f"{pool.keys.base}:test_frozen_us", NOON_MS * 1000)
    leap(pool, 0)


def grant(pool: Pool, name: str, agent: str = "ann", **ask: Any) -> None:
    granted(
        pool.acquire(token(name), agent, **{"memory_mb": 4000, "ttl_ms": 0, "model": "m1"} | ask)
    )


def release(pool: Pool, name: str) -> None:
    assert said(pool.release(token(name))) == ["RELEASED"]


@dataclass
class Reckoner:
    """Follower of events; `at_ms` of each is the pool's time of the call that made it.

    Attributes:
        held: (team, agent, day) -> ms that its leases were held, each counted once.
        mb_ms: the same of MiB.
        leases: (team, agent) -> how many ended.
    """

    held: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    mb_ms: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    leases: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    running: dict[str, int] = field(default_factory=dict)

    def follow(self, at_ms: int, events: Iterable[dict[str, str]]) -> None:
        for event in events:
            if event["event"] == "granted":
                self.running[event["token"]] = at_ms
            elif event["event"] == "recovered":  # a fence is the time of the grant, in µs
                self.running[event["token"]] = int(event["fence"]) // 1000
            elif event["event"] in ENDS and event["token"] in self.running:
                self._end(event, int(event.get("ended_at_ms", at_ms)))

    def _end(self, event: dict[str, str], ended_ms: int) -> None:
        granted_ms = self.running.pop(event["token"])
        who = event.get("team", "default"), event["agent"]
        mb = sum(int(part.rpartition("=")[2]) for part in event["devices"].split(",") if part)
        self.leases[who] += 1
        while granted_ms < ended_ms:
            until_ms = min(ended_ms, granted_ms - granted_ms % DAY_MS + DAY_MS)
            self.held[(*who, day_of(granted_ms))] += until_ms - granted_ms
            self.mb_ms[(*who, day_of(granted_ms))] += mb * (until_ms - granted_ms)
            granted_ms = until_ms
