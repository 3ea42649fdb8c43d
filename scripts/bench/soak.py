"""Arrivals and deaths for as long as you like: sums stay exact, memory stays flat.

Processes of agents lease, wait, renew and give back; some hold leases when they are killed, and
others take their place. Three teams share the devices: two have a quota, the third borrows, and
what is lent is taken back with notice. Every few seconds the server's memory and keys are counted;
tombstones live 15 minutes, so memory is compared from 20 minutes on. How often a job was preempted
is kept for a week: what is neither that nor a tombstone is compared from the first minute on. At
the end no agent is left, and the pool is audited: every sum is what the records say, and nothing is
held.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench

from agent_sdk import LeaseClient, LeaseError, Store
from agent_sdk.protocol.lease import reap
from agent_sdk.teams.policy import TeamPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess

    from agent_sdk.policy import Policy

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parents[2]))

DEVICES, AGENTS, THREADS = 16, 4, 8
TTL_S = (1, 2, 3)
DEATH_S, SAMPLE_S, REPORT_S, REAP_S = 1.5, 5.0, 2.0, 0.5
TOMBSTONES_S, WARM_S, SETTLE_S = 1200.0, 60.0, 60.0
"""Seconds until tombstones come and go alike; until agents are at work; to clear a dead queue."""
GPU_MB = 24_064
TEAMS = {
    "vision": TeamPolicy(nominal_mb=DEVICES // 2 * GPU_MB),
    "speech": TeamPolicy(nominal_mb=DEVICES // 4 * GPU_MB),
    "guests": TeamPolicy(),
}
PREEMPTION: Policy = {"reclaim_after_s": 1, "min_runtime_s": 1, "preempt_grace_s": 1}
FLAT = 1.05
"""Factor by which the last tenth of the samples may be above the first that count."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment."""

    after_s: float
    used_mb: float
    keys: int
    tombstones: int
    evicted: int
    leases: int
    waiting: int

    @property
    def others(self) -> int:
        """Keys that come and go with leases."""
        return self.keys - self.tombstones - self.evicted


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run."""

    minutes: float
    granted: int
    ended: dict[str, int]
    deaths: int
    samples: tuple[Sample, ...]
    flat_memory: bool | None
    flat_keys: bool | None
    exact: str


def agents(url: str, number: int) -> None:
    """Run a process of agents that never ends by itself."""
    client = LeaseClient(Store(url, 10.0), pool=bench.KEYS.pool_name, hostname=bench.HOST)

    def one(agent: str, team: str) -> None:
        dice = random.Random()
        while True:
            whole = dice.random() < 0.1  # noqa: PLR2004 - one in ten wants a whole device
            ask: dict[str, Any] = {"exclusive": True} if whole else {}
            try:
                lease = client.acquire(
                    agent, memory_mb=dice.randrange(64, 8192), ttl_s=dice.choice(TTL_S),
                    wait_s=dice.choice((0, 0.5, 5)), host="any", priority=dice.randrange(10),
                    team=team, preemptible=dice.random() < 0.2, **ask,  # noqa: PLR2004 - one in five
                )  # fmt: skip
                if dice.random() < 0.3:  # noqa: PLR2004 - three in ten live longer than their ttl
                    client.keep(lease)
                time.sleep(dice.expovariate(10))
                if dice.random() < 0.9:  # noqa: PLR2004 - one in ten forgets
                    client.release(lease)
            except LeaseError:
                time.sleep(dice.expovariate(20))

    teams = list(TEAMS)
    threads = [
        threading.Thread(target=one, args=(f"agent-{number}-{n}", teams[n % len(teams)]))
        for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()


def start(url: str, number: int) -> BaseProcess:
    """Return one more process of agents; a fork, so that it is at work at once."""
    process = multiprocessing.get_context("fork").Process(
        target=agents, args=(url, number), daemon=True
    )
    process.start()
    return process


class Keeping:
    """A broker's duties: report the hosts, reap."""

    def __init__(self, pool: bench.Pool) -> None:
        self.pool = pool
        self.next_report = self.next_reap = 0.0

    def step(self) -> None:
        """Do all that is due."""
        now = time.monotonic()
        if now >= self.next_report:
            self.pool.run_all([bench.report_of(f"host-{n}") for n in range(hosts())])
            self.next_report = now + REPORT_S
        if now >= self.next_reap:
            self.reap()
            self.next_reap = now + REAP_S

    def reap(self) -> None:
        """All that is over."""
        while self.pool.run([next(reap())])[0][4]:
            pass


def hosts() -> int:
    """Hosts of 8 devices."""
    return DEVICES // bench.HOST_DEVICES


def sample(pool: bench.Pool, began: float) -> Sample:
    """Look at the server: every key that lives, by kind.

    DBSIZE will not do: among so many keys that expire Redis leaves a tenth of those that are over
    where they are, for a while.
    """
    redis, keys = pool.redis, bench.KEYS
    redis.execute_command("MEMORY", "PURGE")
    prefix = len(keys.base) + 1
    kinds = Counter(
        key[prefix:].split(":", 1)[0] for key in redis.scan_iter(f"{keys.base}:*", count=5000)
    )
    return Sample(
        round(time.monotonic() - began, 1),
        round(redis.info("memory")["used_memory"] / 2**20, 2),
        kinds.total(),
        kinds["done"],
        kinds["evicted"],
        kinds["record"],
        int(redis.hget(keys.pool, "waiting")),
    )


def flat(samples: Sequence[Sample], name: str, after_s: float) -> bool | None:
    """Return whether the last tenth is no higher than the first that count; None: too short."""
    counted = [getattr(x, name) for x in samples if x.after_s >= after_s]
    tenth = len(counted) // 10
    if not tenth:
        return None
    first, last = counted[:tenth], counted[-tenth:]
    return sum(last) <= FLAT * sum(first) + tenth * (0 if name == "used_mb" else 64)


def run(minutes: float) -> Results:
    """Return the whole soak."""
    with bench.running_store() as store:
        pool = bench.Pool(store, DEVICES)
        with LeaseClient(store, pool=bench.KEYS.pool_name, hostname=bench.HOST) as operator:
            operator.set_teams(TEAMS)
            operator.set_policy(**PREEMPTION)
        keeping, began = Keeping(pool), time.monotonic()
        processes = [start(store.url, number) for number in range(AGENTS)]
        deaths, samples = 0, []
        next_death, next_sample = began + DEATH_S * 4, began + SAMPLE_S
        while (now := time.monotonic()) < began + minutes * 60:
            keeping.step()
            if now >= next_death:
                deaths += 1
                at = deaths % AGENTS
                processes[at].kill()
                processes[at].join()
                processes[at] = start(store.url, AGENTS + deaths)
                next_death = now + DEATH_S
            if now >= next_sample:
                samples.append(sample(pool, began))
                next_sample = now + SAMPLE_S
            time.sleep(0.05)
        for process in processes:
            process.kill()
            process.join()
        exact = settled(pool, keeping)
        with LeaseClient(store, pool=bench.KEYS.pool_name, hostname=bench.HOST) as operator:
            stats = operator.pool().stats
    ended = {
        name: stats.get(name, 0)
        for name in ("released", "expired", "preempted", "enqueued", "timed_out", "cancelled")
    }
    return Results(
        minutes, stats.get("granted", 0), ended, deaths, tuple(samples),
        flat(samples, "used_mb", TOMBSTONES_S), flat(samples, "others", WARM_S), exact,
    )  # fmt: skip


def settled(pool: bench.Pool, keeping: Keeping) -> str:
    """Once all is over: what is wrong, or nothing."""
    from tests.audit import audit  # noqa: PLC0415 - the checkout is on the path by now

    records, until = f"{bench.KEYS.base}:record:*", time.monotonic() + SETTLE_S
    while time.monotonic() < until and any(pool.redis.scan_iter(records, count=5000)):
        keeping.step()
        time.sleep(0.1)
    try:
        audit(pool.redis, bench.KEYS)
    except AssertionError as wrong:
        return f"audit: {wrong}"
    held = list(pool.redis.scan_iter(records))
    return f"{len(held)} records are left" if held else ""


def markdown(found: Results) -> str:
    """Return the report."""
    said = {True: "flat", False: "NOT flat", None: "too short to say"}
    rows = found.samples[:: max(1, len(found.samples) // 12)]
    lines = [
        f"# {found.minutes:g} minutes of arrivals and deaths",
        f"{found.granted:,} grants, {found.deaths:,} processes killed while they held; "
        + ", ".join(f"{name} {count:,}" for name, count in found.ended.items()) + ".",
        f"- sums: {'NOT exact: ' + found.exact if found.exact else 'exact, and nothing is left'}",
        f"- memory, from 20 minutes on: {said[found.flat_memory]}",
        f"- keys that come and go with leases, from the first minute on: {said[found.flat_keys]}",
        bench.table(
            ["after, s", "MiB", "keys", "tombstones", "preempted", "others", "records", "waiting"],
            [
                [f"{x.after_s:.0f}", f"{x.used_mb:.1f}", f"{x.keys:,}", f"{x.tombstones:,}",
                 f"{x.evicted:,}", f"{x.others:,}", f"{x.leases:,}", f"{x.waiting:,}"]
                for x in rows
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if the sums are exact and nothing grew, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--write", action="store_true", help="write soak.md and soak.json into results/"
    )
    args = parser.parse_args(argv)
    found = run(args.minutes)
    report = markdown(found)
    print(report)
    if args.write:
        (RESULTS / "soak.md").write_text(report + "\n")
        (RESULTS / "soak.json").write_text(json.dumps(asdict(found), indent=1) + "\n")
    return 1 if found.exact or found.flat_memory is False or found.flat_keys is False else 0


if __name__ == "__main__":
    sys.exit(main())
