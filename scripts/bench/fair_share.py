"""Shares of three teams that wait: the real verbs, a thousand jobs, and a clock that is stepped.

Weights 1:2:4, eight GPUs, jobs of a minute on average. Scenarios: `burst`, all at once; `stale`,
one team has queued 600 jobs, and 20 min later the others come; `idle`, one team has used an idle
pool for an hour, then four bursts; `steady`, 20 clients of each team ask one after the other;
`few`, two, four and six of them. Kinds: one whole GPU each, `shares` of 1 to 8 GiB of 8, `gangs` of
1, 2 or 4 whole GPUs. Shares are of MiB-seconds while every team has a waiter.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from stepped import Job, Stepped

from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import redis

TEAMS = {"a": 1, "b": 2, "c": 4}
WANTED = {team: weight / sum(TEAMS.values()) for team, weight in TEAMS.items()}
GPUS, GIB_MB, GPU_MB, MEAN_S, HOUR_S = 8, 1024, 8192, 60, 3600
KINDS = ("whole", "shares", "gangs")
SCENARIOS = ("burst", "stale", "idle", "steady", "few")
CLIENTS = {"steady": {"a": 20, "b": 20, "c": 20}, "few": {"a": 2, "b": 4, "c": 6}}
BURSTS, STEADY_S = 4, 2 * HOUR_S
A_WEEK_S, SEEDS = 7 * 24 * 3600, 10
LEAST_WRITTEN = 0.08
PICTURE = Path(__file__).parents[2] / "docs" / "concepts" / "fair-share.svg"


@dataclass(frozen=True)
class Outcome:
    """One run: shares while all had waiters, the longest time without a grant, what was in use."""

    shares: dict[str, float]
    gaps_s: dict[str, float]
    used: float

    @property
    def error(self) -> float:
        """The largest difference from what the weights say."""
        return max(abs(self.shares[team] - WANTED[team]) for team in TEAMS)

    @property
    def jain(self) -> float:
        """Jain's index of shares by weight: 1 is fair, 1/3 is all for one."""
        x = [self.shares[team] / weight for team, weight in TEAMS.items()]
        return sum(x) ** 2 / max(1e-9, len(x) * sum(each * each for each in x))


class Jobs:
    """Jobs of one kind and one seed, in the order of their tokens."""

    def __init__(self, seed: int, kind: str) -> None:
        self.rng, self.kind, self.count = random.Random(seed), kind, 0

    def one(self, team: str, kind: str = "") -> Job:
        """Make one job of a team."""
        kind = kind or self.kind
        self.count += 1
        token, run_ms = f"{self.count:016}", int(1000 * self.rng.expovariate(1 / MEAN_S)) + 1
        if kind == "shares":
            return Job(token, team, self.rng.randint(1, 8) * GIB_MB, run_ms)
        devices = self.rng.choice((1, 2, 4)) if kind == "gangs" else 1
        return Job(token, team, GPU_MB, run_ms, devices, whole=True)

    def mixed(self, **counts: int) -> list[Job]:
        """Make so many jobs of each team, in any order."""
        teams = [team for team, count in counts.items() for _ in range(count)]
        self.rng.shuffle(teams)
        return [self.one(team) for team in teams]

    def one_after_another(self, until_s: float) -> Iterator[tuple[int, Job]]:
        """Make jobs of team a, each with the moment at which the one before it ends."""
        at_ms = 0
        while at_ms < until_s * 1000:
            job = self.one("a", "whole")
            yield at_ms, job
            at_ms += job.run_ms


def keep_asking(run: Stepped, jobs: Jobs, clients: Mapping[str, int]) -> None:
    """Let so many clients of each team ask anew when what they had has ended."""

    def ask(team: str) -> None:
        if run.now < STEADY_S * 1000:
            run.submit([jobs.one(team)])

    run.on_end = lambda job: ask(job.team)
    for team, count in clients.items():
        for _ in range(count):
            run.at(0, partial(ask, team))


def plan(run: Stepped, jobs: Jobs, scenario: str) -> None:
    """Put down when which jobs come."""

    def come(at_s: float, **counts: int) -> None:
        for n, job in enumerate(jobs.mixed(**counts)):  # a millisecond apart: no two ranks alike
            run.at(int(at_s * 1000) + n, partial(run.submit, [job]))

    if scenario == "burst":
        come(0, a=400, b=300, c=300)
    elif scenario == "stale":
        come(0, a=600)
        come(1200, b=200, c=200)
    elif scenario == "idle":
        for _ in range(GPUS):
            for at_ms, job in jobs.one_after_another(HOUR_S):
                run.at(at_ms, partial(run.submit, [job]))
        for n in range(1, BURSTS + 1):
            come(n * HOUR_S, a=100, b=75, c=75)
    else:
        keep_asking(run, jobs, CLIENTS[scenario])


def simulate(
    client: redis.Redis, seed: int, kind: str, scenario: str, *, half_life_s: int = A_WEEK_S,
    rule: str = "teams",
) -> Outcome:  # fmt: skip
    """Run one scenario in a new pool; `rule` none: no team has a policy."""
    run = Stepped(client, [GPU_MB] * GPUS, TEAMS)
    run.pool.set_policy(
        half_life_s=half_life_s, max_memory_per_agent_mb=GPUS * GPU_MB, max_waiters_per_agent=9999
    )
    if rule == "teams":
        run.pool.set_teams(**{team: f"weight={weight}" for team, weight in TEAMS.items()})
    plan(run, Jobs(seed, kind), scenario)
    run.run(STEADY_S * 1000 if scenario in CLIENTS else None)
    client.flushall()
    gaps_s = {team: ms / 1000 for team, ms in run.gaps.items()}
    return Outcome(run.contended.shares, gaps_s, run.used)


def row(kind: str, scenario: str, rule: str, runs: Sequence[Outcome]) -> str:
    """One line of the table."""
    shares = " ".join(f"{mean(one.shares[t] for one in runs):.3f}" for t in TEAMS)
    gaps = " ".join(f"{max(one.gaps_s[t] for one in runs):.0f}" for t in TEAMS)
    return (f"| {kind} | {scenario} | {rule} | {shares} | {max(one.error for one in runs):.3f} "
            f"| {mean(one.jain for one in runs):.3f} | {gaps} "
            f"| {mean(one.used for one in runs):.0%} |")  # fmt: skip


def bars(found: Mapping[str, Sequence[Outcome]]) -> str:
    """Draw the shares as bars, and a line where each team's weight would have them."""
    colours, width, high = {"a": "#0072B2", "b": "#D55E00", "c": "#009E73"}, 480, 26
    parts = []
    for n, (name, runs) in enumerate(found.items()):
        x, y = 150.0, 34 + n * 38
        parts.append(f'<text x="142" y="{y + 18}" text-anchor="end">{name}</text>')
        for team in TEAMS:
            part = mean(one.shares[team] for one in runs)
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{part * width:.1f}" height="{high}" '
                         f'fill="{colours[team]}"/>')  # fmt: skip
            if part > LEAST_WRITTEN:
                parts.append(f'<text x="{x + part * width / 2:.1f}" y="{y + 18}" '
                             f'text-anchor="middle" fill="#fff">{part:.3f}</text>')  # fmt: skip
            x += part * width
    bottom = 34 + len(found) * 38
    for at in (WANTED["a"], WANTED["a"] + WANTED["b"]):
        x = 150 + at * width
        parts.append(f'<line x1="{x:.1f}" y1="28" x2="{x:.1f}" y2="{bottom}" stroke="#000" '
                     'stroke-dasharray="4 3"/>')  # fmt: skip
    heads = "".join(
        f'<text x="{150 + at * width:.0f}" y="20" text-anchor="middle">{team}, {weight}</text>'
        for (team, weight), at in zip(TEAMS.items(), (1 / 14, 2 / 7, 5 / 7), strict=True)
    )
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 650 {bottom + 8}" '
            'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" '
            f'fill="#fff"/>{heads}{"".join(parts)}</svg>\n')  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS[:1])
    parser.add_argument("--scenario", choices=SCENARIOS, nargs="+", default=SCENARIOS[:3])
    parser.add_argument("--half-life", type=int, default=A_WEEK_S, metavar="SECONDS")
    parser.add_argument("--rule", choices=("none", "teams"), nargs="+", default=["teams"])
    parser.add_argument("--write", action="store_true", help=f"draw {PICTURE.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there as JSON")
    args = parser.parse_args(argv)
    began, found = time.monotonic(), {}
    print(
        "| kind | scenario | rule | shares a b c | worst error | Jain | longest gap (s) | in use |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with running() as server, server.connect() as client:
        for kind in args.kind:
            for scenario in args.scenario:
                for rule in args.rule:
                    runs = [
                        simulate(
                            client, seed, kind, scenario, half_life_s=args.half_life, rule=rule
                        )
                        for seed in range(args.seeds)
                    ]
                    print(row(kind, scenario, rule, runs), flush=True)
                    found[f"{scenario}, {'rank' if rule == 'none' else 'shares'}"] = runs
    print(f"\n{args.seeds} seeds, half-life {args.half_life} s, {time.monotonic() - began:.0f} s")
    if args.write:
        PICTURE.write_text(bars(found))
    if args.json:
        args.json.write_text(json.dumps({k: [asdict(r) for r in v] for k, v in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
