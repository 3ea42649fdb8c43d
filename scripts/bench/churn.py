"""Evictions by load: four teams with quotas borrow from each other and take back what is theirs.

Quotas of 8, 6, 6 and 0 of 24 units, the same arrivals for each team, two hours. Jobs take two
minutes on average; one that is preempted begins anew, behind the others. Kinds: `whole`, 24 GPUs
and one for each job; `shares`, six GPUs of four units, and jobs of 1, 2 or 4, of priority 0 to 2.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from stepped import TICK_MS, Job, Stepped

from tests.audit import audit
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

UNIT_MB, UNITS = 1024, 24
NOMINAL = {"a": 8, "b": 6, "c": 6, "d": 0}
LOADS, KINDS = (0.2, 0.9, 1.5), ("whole", "shares")
MEAN_S, LENGTH_S = 120, 7200
RECLAIM_AFTER_S, MIN_RUNTIME_S, GRACE_S = 10, 30, 10
HAND_OFF_S = 3 * TICK_MS / 1000
"""A poll that finds it a head, one that notices, a renewal that hears of it: a tick late each."""

MOST_DOUBLINGS = 6


@dataclass
class Churn:
    """Events and waits of one run.

    Attributes:
        worst: evictions of the job that had most.
        not_fallen: reclaims after which teams borrow no less than before.
        unprotected: evictions of a lease within its protection.
        own_wait_s: longest wait of a head that stays within its team's quota, and its bound.
    """

    grants: int = 0
    evictions: int = 0
    worst: int = 0
    reclaims: int = 0
    not_fallen: int = 0
    unprotected: int = 0
    own_wait_s: float = 0.0
    own_since: dict[str, int] = field(default_factory=dict)

    @property
    def bound_s(self) -> float:
        """The bound of `own_wait_s`: the most that any protection came to counts."""
        protection_s = MIN_RUNTIME_S * 2 ** min(MOST_DOUBLINGS, self.worst)
        return RECLAIM_AFTER_S + protection_s + GRACE_S + HAND_OFF_S


class Teams:
    """The jobs of one run, and what their leases are told."""

    def __init__(self, client: redis.Redis, seed: int, load: float, kind: str) -> None:
        self.rng, self.kind, self.found = random.Random(seed), kind, Churn()
        sizes = [UNIT_MB] * UNITS if kind == "whole" else [4 * UNIT_MB] * (UNITS // 4)
        self.run = Stepped(client, sizes, NOMINAL)
        self.run.pool.set_policy(
            reclaim_after_s=RECLAIM_AFTER_S, min_runtime_s=MIN_RUNTIME_S, preempt_grace_s=GRACE_S,
            max_memory_per_agent_mb=UNITS * UNIT_MB, max_waiters_per_agent=100_000,
        )  # fmt: skip
        lines = {team: f"weight=1 nominal_mb={n * UNIT_MB}" for team, n in NOMINAL.items()}
        self.run.pool.set_teams(**lines)
        self.run.on_tick, self.run.on_grant = self.tick, self.granted
        self.noticed: dict[str, str] = {}  # token -> its asker
        self.seen, self.count = "0", 0
        mean_units = 1.0 if kind == "whole" else 7 / 3
        mean_ms = 1000 * mean_units * MEAN_S / (load * UNITS)
        at_ms = 0.0
        while (at_ms := at_ms + self.rng.expovariate(1 / mean_ms)) < LENGTH_S * 1000:
            self.run.at(int(at_ms), partial(self.arrive, self.rng.choice(list(NOMINAL))))

    def arrive(self, team: str) -> None:
        """Submit a new job of a team."""
        whole = self.kind == "whole"
        units, priority = (1, 0) if whole else (self.rng.choice((1, 2, 4)), self.rng.randrange(3))
        run_ms = max(1, int(self.rng.expovariate(1 / (MEAN_S * 1000))))
        self.submit(Job("", team, units * UNIT_MB, run_ms, whole=whole, priority=priority))

    def submit(self, job: Job) -> None:
        """Let a job ask, under a token of its own."""
        self.count += 1
        job.token = f"{self.count:016}"
        self.run.submit([job])

    def granted(self, job: Job) -> None:
        """Count a grant."""
        self.found.grants += 1
        self.found.own_since.pop(job.token, None)

    def tick(self) -> None:
        """Read the notices, renew as holders do, and see how long own heads wait."""
        self.read_notices()
        self.renew(list(self.run.running.values()))
        self.watch_own()

    def renew(self, jobs: Sequence[Job]) -> None:
        """Renew; a lease that is to be preempted asks again at its time, and then begins anew."""
        jobs = [job for job in jobs if job.token in self.run.running]
        replies = self.run.call(*(("renew", 1, job.token, "", "") for job in jobs))
        again = []
        for job, reply in zip(jobs, replies, strict=True):
            if reply[0] == "LOST":
                if reply[5] != "preempted":
                    message = f"{job}: {reply}"
                    raise AssertionError(message)
                self.run.lost(job)
                self.noticed.pop(job.token, None)
                self.found.evictions += 1
                self.found.worst = max(self.found.worst, job.evictions + 1)
                again.append(job)
            elif reply[7].startswith("preempt:"):
                in_ms = max(0, int(reply[7].removeprefix("preempt:")) - reply[1])
                if 0 < in_ms <= TICK_MS:
                    self.run.at(self.run.now + in_ms, partial(self.renew, [job]))
        for job in again:
            self.submit(replace(job, evictions=job.evictions + 1, after=job.token, granted_ms=-1))

    def borrowed_mb(self) -> int:
        """Sum what teams have beyond their quotas, with askers in the place of what is noticed."""
        has = dict(self.run.held)
        for token in self.noticed:
            has[self.run.running[token].team] -= self.run.running[token].held_mb
        for token in set(self.noticed.values()):
            if token in self.run.waiting:
                has[self.run.waiting[token].team] += self.run.waiting[token].memory_mb
        return sum(max(0, mb - NOMINAL[team] * UNIT_MB) for team, mb in has.items())

    def read_notices(self) -> None:
        """Check each set of notices since the last tick."""
        entries: Any = self.run.pool.redis.xrange(self.run.keys.events, f"({self.seen}")
        running_now = self.run.running
        self.noticed = {
            t: of for t, of in self.noticed.items() if t in running_now and of in self.run.waiting
        }
        sets: dict[str, list[dict[str, str]]] = {}
        for entry_id, event in entries:
            self.seen = entry_id
            if event["event"] == "preempting" and event["token"] in running_now:
                sets.setdefault(event["for"], []).append(event)
        for asker, events in sets.items():
            before_mb = self.borrowed_mb()
            for event in events:
                self.noticed[event["token"]] = asker
                job = running_now[event["token"]]
                protected_ms = MIN_RUNTIME_S * 1000 * 2 ** min(MOST_DOUBLINGS, job.evictions)
                self.found.unprotected += self.run.now - job.granted_ms < protected_ms
            if any(event["reason"] == "quota" for event in events):
                self.found.reclaims += 1
                self.found.not_fallen += self.borrowed_mb() >= before_mb

    def watch_own(self) -> None:
        """Measure the waits of heads that stay within their team's quota."""
        own, found = {}, self.found
        for token in self.run.polling & self.run.waiting.keys():
            job = self.run.waiting[token]
            if self.run.held[job.team] + job.memory_mb <= NOMINAL[job.team] * UNIT_MB:
                own[token] = found.own_since.get(token, self.run.now)
                wait_s = (self.run.now - own[token]) / 1000
                found.own_wait_s = max(found.own_wait_s, wait_s)
        found.own_since = own


def simulate(client: redis.Redis, seed: int, load: float, kind: str) -> Churn:
    """Run two hours with that load, and audit the pool behind it."""
    teams = Teams(client, seed, load, kind)
    teams.run.run(LENGTH_S * 1000)
    audit(client, teams.run.keys)
    client.flushall()
    return teams.found


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--load", type=float, nargs="+", default=LOADS)
    args = parser.parse_args(argv)
    print("| kind | load | evictions per grant | worst job | own wait, bound (s) | reclaims "
          "| borrowing did not fall | within protection |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    with running() as server, server.connect() as client:
        for kind in args.kind:
            for load in args.load:
                runs = [simulate(client, seed, load, kind) for seed in range(args.seeds)]
                grants, evictions = sum(r.grants for r in runs), sum(r.evictions for r in runs)
                wait = max(runs, key=lambda r: r.own_wait_s)
                print(f"| {kind} | {load} | {evictions / grants:.3f} "
                      f"| {max(r.worst for r in runs)} | {wait.own_wait_s:.0f}, {wait.bound_s:.0f} "
                      f"| {sum(r.reclaims for r in runs)} | {sum(r.not_fallen for r in runs)} "
                      f"| {sum(r.unprotected for r in runs)} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
