"""A past of a pool: sums of use in the documented form, and finished leases in the history."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Final

from agent_sdk.usage.period import DAY_MS, HOUR_MS, day_of

if TYPE_CHECKING:
    from agent_sdk import LeaseClient

MODELS: Final = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA L4")

TEAMS: Final = ("nlp", "vision", "speech", "robotics", "search", "ranking", "ads", "biology",
                "platform", "default")  # fmt: skip


AGENTS: Final = ("analyst", "critic", "embedder", "reranker", "scout", "trainer")

PEAKS: Final = (0.22, 0.58, 0.76, 0.83, 0.9, 0.97, 0.97, 1.04)
"""Peaks of finished leases, as parts of what they asked for."""


def _words(gpu_ms: int, chance: random.Random) -> dict[str, int]:
    """Sums of a day of one group, which used so much GPU-time."""
    known_ms = int(gpu_ms * 0.96)
    mb_ms = gpu_ms * 40_960
    waits = chance.randrange(3)
    return {
        "leases": 1 + gpu_ms // (4 * HOUR_MS), "held_ms": gpu_ms, "gpu_ms": gpu_ms, "mb_ms": mb_ms,
        "known_gpu_ms": known_ms, "busy_gpu_ms": int(known_ms * chance.uniform(0.4, 0.9)),
        "above_mb_ms": int(mb_ms * chance.uniform(0.05, 0.5)), "energy_mj": gpu_ms * 320,
        "waits": waits, "waited_ms": waits * chance.randrange(1_000, 600_000),
    }  # fmt: skip


def _line(words: dict[str, int], more: str = "") -> str:
    return " ".join([*(f"{name}={n}" for name, n in words.items() if n), *filter(None, [more])])


def _load(day: int) -> float:
    """Give the load of a day: less on Saturdays and Sundays, in waves over a year."""
    week = 0.45 if (day + 3) % 7 >= 5 else 1.0
    return week * (0.75 + 0.25 * math.sin(day / 23))


def write_past(
    client: LeaseClient, *, days: int, agents: int, hosts: int, teams: int = len(TEAMS)
) -> None:
    """Write the sums of so many days, the last of which is today."""
    chance = random.Random(7)
    now_ms = int(time.time() * 1000)
    today_ms = now_ms - now_ms % DAY_MS
    pipe = client.redis.pipeline(transaction=False)
    for ago in range(days):
        day_ms = today_ms - ago * DAY_MS
        day, load = day_of(day_ms), _load(day_ms // DAY_MS)
        passed = (now_ms - day_ms) / DAY_MS if ago == 0 else 1.0
        by_who = {}
        for n in range(agents):
            team = TEAMS[int(teams * (n / agents) ** 1.6)]
            gpu_ms = int(passed * load * chance.uniform(2, 22) * HOUR_MS)
            name = f"{team} {AGENTS[n % len(AGENTS)]}-{n} {MODELS[n % 3]}"
            by_who[name] = _line(_words(gpu_ms, chance))
        pipe.hset(client.keys.usage(day), mapping=by_who)
        by_host = {}
        for n in range(hosts):
            hours = [
                int(load * (3 + n % 6) * HOUR_MS * _of_hour(hour) * chance.uniform(0.7, 1))
                if day_ms + hour * HOUR_MS < now_ms
                else 0
                for hour in range(24)
            ]
            more = "hours=" + ",".join(map(str, hours))
            by_host[f"gpu-host-{n + 1}|{MODELS[n % 3]}"] = _line(_words(sum(hours), chance), more)
        pipe.hset(client.keys.usage_of_hosts(day), mapping=by_host)
        if ago % 30 == 0:
            pipe.execute()
    pipe.execute()


def _of_hour(hour: int) -> float:
    """Give the part of a day's load that an hour has: most in the afternoon."""
    return 0.55 + 0.45 * math.sin((hour - 8) / 24 * 2 * math.pi)


def write_history(client: LeaseClient, count: int, *, hosts: int = 5) -> None:
    """Write finished leases, the newest last; of every eighth no peak is known."""
    chance = random.Random(11)
    now_ms = int(time.time() * 1000)
    pipe = client.redis.pipeline(transaction=False)
    for n in range(count):
        ended_ms = now_ms - (count - n) * 421_000
        held_ms = chance.randrange(60_000, 9 * HOUR_MS)
        mb = chance.choice((8192, 16_384, 20_480))
        known_ms = int(held_ms * 0.97)
        outcome = {7: "expired", 11: "preempted"}.get(n % 13, "released")
        words = [
            f"token=past-{n:05}-aaaa-bbbb agent={AGENTS[n % len(AGENTS)]} team={TEAMS[n % 4]}",
            f"owner= devices=GPU-{n % 5}-{n % 8}={mb} gpus=1 outcome={outcome}",
            f"granted_at_ms={ended_ms - held_ms} ended_at_ms={ended_ms}",
            f"waited_ms={chance.randrange(2_000, 900_000) if n % 3 == 0 else ''} mb={mb}",
            f"known_ms={known_ms} busy_ms={int(known_ms * chance.uniform(0.2, 1))}",
            f"peak_mb={int(mb * chance.choice(PEAKS))}" if n % 8 else "",
            f"on gpu-host-{n % hosts + 1}|{MODELS[n % hosts % 3]}",
        ]
        pipe.xadd(client.keys.history, {"lease": " ".join(filter(None, words))}, id=f"{ended_ms}-0")
    pipe.execute()
