"""The broker beside everything else that hands out a resource: pairs, hand-offs, deaths, promises.

Each kind runs in processes of its own; every figure that is compared with another comes from the
same rounds, in turn, and figures are medians over rounds. Servers have one core, all clients the
other. A kind that cannot be installed or started is a row that says why.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import peer_probes
import peer_report
from peer_servers import NotMeasured, Process, World
from rival import (
    ASYNC_LOCK,
    ETCD,
    FILES,
    LOCK,
    OURS,
    OURS_ASYNC,
    OURS_DURABLE,
    PING,
    POTTERY,
    REDIS_LOCK,
    RESLOCK,
    SCRIPT,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peer_probes import Answers

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"

CLIENTS = (1, 10, 100)
WAITERS = (1, 20)
PAIRS = (OURS, OURS_ASYNC, OURS_DURABLE, LOCK, ASYNC_LOCK, REDIS_LOCK, POTTERY, ETCD, FILES,
         RESLOCK, SCRIPT, PING)  # fmt: skip
HANDED = (OURS, OURS_ASYNC, LOCK, ASYNC_LOCK, REDIS_LOCK, POTTERY, ETCD, FILES, RESLOCK)
KILLED = (OURS, LOCK, REDIS_LOCK, POTTERY, ETCD, FILES, RESLOCK)

TTL_S, HELD_S = 2.0, 0.4
"""TTL of a holder that is killed, and the time that it has held by then."""

TURN_S = 0.008
"""For each of many clients."""

AT_ONCE = 3
"""Kinds whose waits, of seconds each, run beside one another."""


@dataclass(frozen=True, slots=True)
class Effort:
    """The extent of the measurements."""

    rounds: int
    pair_s: float
    chain_s: float
    deaths: int


QUICK, FULL = Effort(1, 0.15, 1.5, 1), Effort(3, 0.25, 2.0, 2)


@dataclass(slots=True)
class Results:
    """Everything that one run found, samples by round; what is missing says why in `missing`."""

    setting: dict[str, str]
    pairs: dict[str, dict[int, list[dict[str, float]]]] = field(default_factory=dict)
    handoff_us: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    death_s: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def miss(self, kind: str, part: str, why: NotMeasured) -> None:
        """Take note of what could not be measured."""
        self.missing.setdefault(f"{kind}: {part}", str(why))


def measure_pairs(world: World, effort: Effort, found: Results) -> None:
    """Uncontended pairs of every kind with every number of clients, in turn; the first warms up."""
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for kind in PAIRS:
            try:
                processes[kind] = stack.enter_context(world.process(kind))
            except NotMeasured as why:
                found.miss(kind, "pairs", why)
        for number in range(effort.rounds + 1):
            for clients in CLIENTS:
                for kind in in_turn(processes, number):
                    try:
                        got = processes[kind].ask("pairs", **long_enough(clients, effort))
                    except NotMeasured as why:
                        found.miss(kind, f"pairs of {clients}", why)
                        continue
                    rounds = found.pairs.setdefault(kind, {}).setdefault(clients, [])
                    rounds += [got] if number else []


def long_enough(clients: int, effort: Effort) -> dict[str, float]:
    """Return a hundred threads of one process need a while until each has had its turn."""
    return {"clients": clients, "seconds": max(effort.pair_s, clients * TURN_S)}


def in_turn(kinds: Sequence[str] | dict[str, Process], number: int) -> Iterator[str]:
    """All of them, each round starting with another."""
    names = list(kinds)
    first = number % len(names)
    yield from (*names[first:], *names[:first])


def measure_handoffs(world: World, effort: Effort, found: Results) -> None:
    """Hand one resource round between two processes while so many wait."""
    with ExitStack() as stack:
        pairs: dict[str, list[Process]] = {}
        for kind in HANDED:
            try:
                pairs[kind] = [stack.enter_context(world.process(kind)) for _ in range(2)]
                for process in pairs[kind]:
                    process.ask("pairs", clients=1, seconds=0.01)  # imports, connects
            except NotMeasured as why:
                found.miss(kind, "hand-off", why)
        for number in range(effort.rounds):
            for waiters in WAITERS:
                for kind in in_turn(pairs, number):
                    try:
                        us = chain(pairs[kind], waiters, effort.chain_s)
                    except NotMeasured as why:
                        found.miss(kind, f"hand-off at {waiters}", why)
                        continue
                    found.handoff_us.setdefault(kind, {}).setdefault(waiters, []).extend(us)


def chain(pair: Sequence[Process], waiters: int, seconds: float) -> list[float]:
    """µs from each call of release to the return of the next holder's acquire."""
    clients = (waiters + 1 - (waiters + 1) // 2, (waiters + 1) // 2)
    with tempfile.NamedTemporaryFile(prefix="gpu-bench-") as mark:
        Path(mark.name).write_bytes(bytes(8))
        until = time.monotonic() + seconds
        for process, count in zip(pair, clients, strict=True):
            process.tell("chain", clients=count, until=until, mark=mark.name)
        links = sorted(tuple(link) for process in pair for link in process.answer())
    return [(b[0] - a[1]) / 1000 for a, b in pairwise(links[1:])]


def measure_deaths(world: World, effort: Effort, found: Results) -> None:
    """SIGKILL the holder: seconds until the one who waits has it."""
    for number in range(effort.deaths):
        with ThreadPoolExecutor(AT_ONCE) as several:
            for kind, died in [(k, several.submit(death, world, k, number)) for k in KILLED]:
                try:
                    found.death_s.setdefault(kind, []).append(died.result())
                except NotMeasured as why:
                    found.miss(kind, "death", why)


def death(world: World, kind: str, number: int) -> float:
    """Return seconds from the SIGKILL to the return of the next holder's acquire."""
    name = f"shared-death-{kind}-{number}".replace(" ", "-")
    with world.process(kind) as holder, world.process(kind) as waiter:
        holder.ask("acquire", name=name, wait_s=10, ttl_s=TTL_S)
        waiter.tell("acquire", name=name, wait_s=20, ttl_s=TTL_S)
        time.sleep(HELD_S)
        killed_ns = time.monotonic_ns()
        holder.kill()
        got = waiter.answer()
        if not got["got"]:
            raise NotMeasured("nobody had it after 20 s")
        waiter.ask("release", name=name)
    return float(got["at_ns"] - killed_ns) / 1e9


def ask_all(found: Results) -> None:
    """Return each kind's abilities beside locking."""
    for kind in peer_probes.ASKED:
        try:
            found.answers[kind] = peer_probes.answers(kind)
        except NotMeasured as why:
            found.miss(kind, "probes", why)


def setting() -> dict[str, str]:
    """Return the setting of the measurements."""
    versions = {"redis-py": metadata.version("redis"), "Python": platform.python_version()}
    for program in ("redis-server", "etcd"):
        if shutil.which(program):
            said = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=False
            )
            versions[program] = next(iter(re.findall(r"\d+\.[\d.]+", said.stdout)), "?")
    for line in (Path(__file__).parent / "peers-requirements.txt").read_text().splitlines():
        if "==" in line:
            name, _, version = line.partition("==")
            versions.setdefault(name, version)
    return versions | {"cores": str(os.cpu_count())}


def run(effort: Effort) -> Results:
    """Everything, in one run."""
    found = Results(setting())
    for part in (measure_pairs, measure_handoffs, measure_deaths):
        began = time.monotonic()
        with ExitStack() as stack:
            part(World(stack), effort, found)
        print(f"{part.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    began = time.monotonic()
    ask_all(found)
    print(f"ask_all: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures: a ratio on a shared machine is news, not a failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--write", action="store_true",
        help="write peers.md, peers.json and peers.png into results/, the table into docs/",
    )  # fmt: skip
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    found = run(QUICK if args.quick else FULL)
    report = peer_report.markdown(found)
    print(report)
    if args.write:
        (RESULTS / "peers.md").write_text(report + "\n")
        (RESULTS / "peers.json").write_text(json.dumps(asdict(found), indent=1) + "\n")
        peer_report.plot(found, RESULTS / "peers.png")
        peer_report.put(PAGE, "peers", peer_report.short(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
