"""A year of use: memory of its sums, and time to read them.

100 agents on 50 hosts with three models of GPU; each agent has a lease on each model every day. The
leases are granted and given back by the real verbs, whose clock is stepped.

    python scripts/bench/usage.py [--agents 100] [--hosts 50] [--days 365]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.pools import Pool, device
from tests.servers import running

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MODELS = ("NVIDIA H200", "NVIDIA A100 80GB PCIe", "NVIDIA GeForce RTX 4090")
TEAMS = 10
MIB = 1024 * 1024


def live(pool: Pool, agents: int, hosts: int, days: int) -> int:
    """Let so many days pass; how many leases that were."""
    began_us = 1_800_000_000_000_000
    pool.redis.set(f"{pool.keys.base}:test_frozen_us", began_us)
    pool.redis.config_set("appendonly", "no")
    for host in range(hosts):
        gpus = tuple(
            device(f"gpu-{host}-{n}", 81_000, index=n, model=model)
            for n, model in enumerate(MODELS)
        )
        pool.report(gpus, host=f"gpu-host-{host}", deadline_ms=DAY_MS)
    leases = 0
    for day in range(days):
        tokens = []
        pipe = pool.redis.pipeline(transaction=False)
        for host in range(hosts):
            pipe.execute_command(
                *pool.command("report"), 1, f"gpu-host-{host}", DAY_MS, 0, "", 0, "bench"
            )
        for agent in range(agents):
            for n, model in enumerate(MODELS):
                host = f"gpu-host-{(agent * len(MODELS) + n + day) % hosts}"
                tokens.append(f"lease-{day:04d}-{agent:04d}-{n}")
                pipe.execute_command(
                    *pool.command("acquire"), 1, tokens[-1], f"agent-{agent}", 8192, 1, 0, 0, 0, 0,
                    host, model, "spread", "refuse", "bench", "1:1", "", 0, "", "",
                    f"team-{agent % TEAMS}",
                )  # fmt: skip
        replies = pipe.execute()[hosts:]
        on = {token: reply[9] for token, reply in zip(tokens, replies, strict=True)}
        see(pool, on, int(replies[-1][1]), 7 * HOUR_MS)
        for token in tokens:
            pipe.execute_command(*pool.command("release"), 1, token, 0)
        pipe.incrby(f"{pool.keys.base}:test_skew_ms", 17 * HOUR_MS)
        pipe.execute()
        leases += len(tokens)
    pool.reap_all()
    return leases


def see(pool: Pool, on: dict[str, str], now_ms: int, for_ms: int) -> None:
    """Let time pass, and have hosts tell what they have seen of leases; token -> its device."""
    of: dict[str, list[str]] = {}
    for token, uuid in on.items():
        of.setdefault(uuid, []).append(token)
    for to_ms, seen in ((now_ms, "::5000:"), (now_ms + for_ms, ":9000000:6000:900000000")):
        pipe = pool.redis.pipeline(transaction=False)
        pipe.incrby(f"{pool.keys.base}:test_skew_ms", to_ms - now_ms)
        for uuid, tokens in of.items():
            told = ",".join(f"{token}={now_ms}:{to_ms}{seen}" for token in tokens)
            fields = ("same", 1, "state", "ok", "used_mb", 0, "use", told)
            host = uuid.rpartition("-")[0].replace("gpu-", "gpu-host-")
            pipe.execute_command(
                *pool.command("report"), 1, host, DAY_MS, 0, "", 0, "bench", uuid, 4, *fields
            )
        pipe.execute()


def sizes(pool: Pool) -> dict[str, tuple[int, int]]:
    """Keys and bytes, by what they are for."""
    found: dict[str, tuple[int, int]] = {}
    for key in pool.redis.scan_iter(f"{pool.keys.base}:*", count=1000):
        name = key.removeprefix(f"{pool.keys.base}:").partition(":")[0]
        if name in {"usage", "usage_total", "history"}:
            bytes_of: Any = pool.redis.memory_usage(key, samples=0)
            keys, total = found.get(name, (0, 0))
            found[name] = keys + 1, total + bytes_of
    return found


def main() -> None:
    """Fill a pool, and print what its year takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--days", type=int, default=365)
    args = parser.parse_args()
    with running("redis") as server, server.connect() as client:
        pool = Pool(client, functions=True)
        leases = live(pool, args.agents, args.hosts, args.days)
        print(f"{leases} leases of {args.agents} agents on {args.hosts} hosts, {args.days} days")
        for name, (keys, size) in sorted(sizes(pool).items()):
            print(f"{name:12} {keys:5} keys {size / MIB:8.1f} MiB")


if __name__ == "__main__":
    main()
