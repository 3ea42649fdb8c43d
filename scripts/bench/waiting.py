"""Costs of waiting: hand-offs, many tasks in one process, and a long queue.

Beside redis-py's Lock, python-redis-lock and pottery's Redlock, which account for nothing and have
no order; and beside a pipeline of our own scripts, which waits for nobody. Figures that are
compared come from the same rounds; ratios are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import bench
import handoff
import redis
import redis.asyncio
import redis_lock
from handoff import LOCK, OURS, POTTERY, REDIS_LOCK, Handoff
from pottery import AIORedlock

from agent_sdk import AsyncLeaseClient, Store
from agent_sdk.keys import Keys
from agent_sdk.protocol.lease import release
from agent_sdk.request import Caller
from agent_sdk.scripts.dispatch import Dispatch
from agent_sdk.scripts.library import own_library

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

RESULTS = Path(__file__).parent / "results"
HAND_MADE = "a pipeline by hand"
TASKS = (1, 10, 100)
WAITERS = {OURS: (1, 10, 100, 1000), LOCK: (1, 10, 100, 1000), REDIS_LOCK: (1, 10, 100),
           POTTERY: (1, 10, 100)}  # fmt: skip

QUEUES = (0, 1, 1000, 10_000)
HANDOFF_GOALS = {1: 12.0, 100: 20.0, 1000: 40.0}
POLL_GOAL_PCT = 5.0
OTHERS_POLL_S = 7.5
"""On average; see `agent_sdk.protocol.lease.OTHERS_POLL_S`."""

HANDOFF_SAYS = """\
From the call of release in one process to the return of the next holder's acquire in another, in
raw PINGs of the same moments: median, and the 95th of a hundred. The server has one core, all
clients the other. `-`: a thousand threads, or
Redlocks of many round trips each, would tell of the machine."""

PAIRS_SAY = """\
Acquire and release by tasks of one process (python-redis-lock: threads), uncontended."""

QUEUES_SAY = """\
Server time in µs, pipelined, 64 devices, of those who are served elsewhere while so many wait for a
full host; one poll of a waiter behind others, and the share of a core that all polls take."""

QUEUE_COLUMNS = ("acquire", "renew", "release", "calls of a release", "a poll", "all polls")


@dataclass(frozen=True, slots=True)
class Effort:
    """The extent of the measurements."""

    rounds: int
    handoffs: int
    pairs: int


QUICK, FULL = Effort(5, 8, 400), Effort(11, 25, 1000)


@dataclass(frozen=True, slots=True)
class Queue:
    """Server time beside a queue of so many waiters, µs; and of one poll of those behind others."""

    waiters: int
    acquire_us: float
    renew_us: float
    release_us: float
    calls: dict[str, float]
    poll_us: float

    @property
    def poll_pct(self) -> float:
        """The share of a server's core that the polls of the whole queue take."""
        return self.waiters / OTHERS_POLL_S * self.poll_us / 1e4


@contextmanager
def pool_named(name: str, devices: int) -> Iterator[bench.Pool]:
    """Run a server with a pool of that name and hosts that live for a day."""
    with bench.running_store() as store:
        pool = bench.Pool(store, 0)
        hosts = [f"host-{n}" for n in range(max(1, devices // bench.HOST_DEVICES))]
        report, base = own_library().function("report"), Keys(name).base
        for host in hosts:
            args = list(bench.report_of(host).args)
            args[7:] = args[7 : 7 + (len(args) - 7) * devices // bench.HOST_DEVICES // len(hosts)]
            pool.redis.fcall(report, 1, base, *args)
        yield pool


def pairs_per_s(effort: Effort) -> dict[tuple[str, int], list[float]]:
    """Acquire and release, uncontended, by tasks of one process: pairs per second by round."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    with pool_named("pairs", 64) as pool:
        url = pool.store.url
        for number in range(effort.rounds + 1):
            for tasks in TASKS:
                each = max(2, effort.pairs // tasks)
                runs: dict[str, Callable[[], Awaitable[float]]] = {
                    OURS: lambda t=tasks, e=each: with_leases(url, t, e),
                    LOCK: lambda t=tasks, e=each: with_locks(url, t, e),
                    POTTERY: lambda t=tasks, e=each: with_redlocks(url, t, max(2, e // 4)),
                    HAND_MADE: lambda t=tasks, e=each: with_pipeline(url, t, e),
                }  # fmt: skip
                for name, run in runs.items():
                    figure = asyncio.run(run())
                    found[name, tasks] += [figure] if number else []
                figure = with_threads(url, tasks, max(2, each // 4))
                found[REDIS_LOCK, tasks] += [figure] if number else []
    return found


async def timed(work: Sequence[Awaitable[None]], pairs: int) -> float:
    """Pairs per second of all together."""
    began = time.perf_counter()
    await asyncio.gather(*work)
    return pairs / (time.perf_counter() - began)


async def with_leases(url: str, tasks: int, each: int) -> float:
    """Ours."""
    async with AsyncLeaseClient(Store(url, 30.0), pool="pairs", hostname="host-0") as client:

        async def one(number: int) -> None:
            for _ in range(each):
                lease = await client.acquire(f"agent-{number}", memory_mb=8, host="any")
                await client.release(lease)

        await client.release(await client.acquire("warm", memory_mb=8, host="any"))
        return await timed([one(number) for number in range(tasks)], tasks * each)


async def with_locks(url: str, tasks: int, each: int) -> float:
    """redis.asyncio's Lock, one lock for each task."""
    async with redis.asyncio.Redis.from_url(url) as client:

        async def one(number: int) -> None:
            lock = client.lock(f"lock-{number}", timeout=600)
            for _ in range(each):
                await lock.acquire()
                await lock.release()

        await asyncio.gather(*(client.ping() for _ in range(tasks)))
        return await timed([one(number) for number in range(tasks)], tasks * each)


async def with_redlocks(url: str, tasks: int, each: int) -> float:
    """Return a Redlock of pottery on one master."""
    async with redis.asyncio.Redis.from_url(url) as client:

        async def one(number: int) -> None:
            lock = AIORedlock(key=f"red-{number}", masters={client}, auto_release_time=600)
            for _ in range(each):
                await lock.acquire()
                await lock.release()

        await asyncio.gather(*(client.ping() for _ in range(tasks)))
        return await timed([one(number) for number in range(tasks)], tasks * each)


async def with_pipeline(url: str, tasks: int, each: int) -> float:
    """Our own scripts, so many acquires in one pipeline and then as many releases."""
    caller, wording = Caller("host-0", "bench"), Dispatch(Keys("pairs").base)
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
        await client.ping()
        began = time.perf_counter()
        for _ in range(each):
            pipe, tokens = client.pipeline(transaction=False), []
            for number in range(tasks):
                request = caller.request(f"agent-{number}", memory_mb=8, host="any")
                tokens.append(request.token)
                pipe.execute_command(*wording.command(request.call()))
            await pipe.execute()
            pipe = client.pipeline(transaction=False)
            for token in tokens:
                pipe.execute_command(*wording.command(next(release(token))))
            await pipe.execute()
        return tasks * each / (time.perf_counter() - began)


def with_threads(url: str, tasks: int, each: int) -> float:
    """python-redis-lock, which has no asyncio: a thread for each."""
    client = redis.Redis.from_url(url)

    def one(number: int) -> None:
        for _ in range(each):
            lock = redis_lock.Lock(client, f"thread-{number}", expire=600)
            lock.acquire()
            lock.release()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(tasks)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tasks * each / (time.perf_counter() - began)


def handoffs(effort: Effort) -> list[Handoff]:
    """Return every kind with every number of waiters."""
    found = []
    for kind, counts in WAITERS.items():
        for waiters in counts:
            with pool_named(handoff.NAME, 1) as pool, raw_ping(pool.store.url) as ping:
                url = pool.store.url
                holder: handoff.Holder
                holder = handoff.LeaseHolder(url) if kind == OURS else handoff.LockHolder(url, kind)
                if kind == OURS:
                    pool.redis.hset(Keys(handoff.NAME).pool, "max_waiters_per_agent", 10_000)
                    holder.take()
                server = pool.redis.info("server")["process_id"]
                with bench.placed(server, next(reversed(bench.PLACES))):  # inherited by the waiters
                    found.append(handoff.measure(holder, kind, url, waiters, effort.handoffs, ping))
    return found


@contextmanager
def raw_ping(url: str) -> Iterator[Callable[[], float]]:
    """Return the median µs of some PINGs on a bare socket."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(url.removeprefix("unix://"))

        def ping() -> float:
            times = []
            for _ in range(32):
                began = time.perf_counter()
                wire.sendall(b"PING\r\n")
                wire.recv(64)
                times.append((time.perf_counter() - began) * 1e6)
            return median(times)

        yield ping


def queues(effort: Effort) -> list[Queue]:
    """Server time of the verbs beside queues of several lengths, each of them in every round."""
    samples: dict[int, list[Queue]] = defaultdict(list)
    for number in range(effort.rounds + 1):
        for waiters in QUEUES:
            with bench.running_store() as store:
                pool = bench.Pool(store, 64)
                samples[waiters] += [queue_of(pool, waiters)] if number else []
    return [
        Queue(
            waiters,
            median(x.acquire_us for x in found),
            median(x.renew_us for x in found),
            median(x.release_us for x in found),
            found[0].calls,
            median(x.poll_us for x in found),
        )
        for waiters, found in samples.items()
    ]


def queue_of(pool: bench.Pool, waiters: int) -> Queue:
    """Return one sample: so many wait for a host that is full, and others come and go elsewhere."""
    full = "host-7"
    pool.run_all([bench.ask("full", 24_064, 86_400, full) for _ in range(bench.HOST_DEVICES)])
    asks = [
        bench.CALLER.request(f"waiter-{n // 200}", memory_mb=1000, host=full, wait_s=600).call()
        for n in range(waiters)
    ]
    commands = [bench.command(call) for call in asks]
    for start in range(0, waiters, bench.CHUNK):
        pool.pipe(commands[start : start + bench.CHUNK])
    costs = bench.lease_costs(pool, bench.VERB_CALLS, pipelined=True)
    stats = pool.stats()
    calls = {"release": sum(n for name, (n, _) in stats.items() if name not in bench.WAYS)}
    polls = commands[1 : bench.CHUNK + 1]
    poll_us = 0.0
    if polls:
        poll_us, _ = bench.server_us(pool, lambda: pool.pipe(polls))
    return Queue(
        waiters, costs["acquire"], costs["renew"], costs["release"],
        {name: count / bench.VERB_CALLS for name, count in calls.items()}, poll_us,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run found."""

    server: str
    pairs: dict[str, dict[int, float]]
    handoffs: list[Handoff]
    queues: list[Queue]
    goals: list[tuple[str, bool, str]]


def run(effort: Effort) -> Results:
    """Measure everything, and hold it against what was aimed at."""
    with bench.running_store() as store, store.connect() as client:
        version = str(client.info("server")["redis_version"])
    pairs, found, measured = pairs_per_s(effort), handoffs(effort), queues(effort)
    goals: list[tuple[str, bool, str]] = []
    for name, least in ((LOCK, 1.3), (HAND_MADE, 0.6)):
        figure = median(a / b for a, b in zip(pairs[OURS, 100], pairs[name, 100], strict=True))
        says = f"pairs/s of 100 tasks / {name}: {figure:.2f}, goal at least {least}"
        goals.append((says, figure >= least, name))
    for waiters, most in HANDOFF_GOALS.items():
        figure = in_pings(of(found, OURS, waiters))
        peers = [in_pings(x) for x in found if x.waiters == waiters and x.kind in {LOCK, POTTERY}]
        below = figure < min(peers)
        says = f"hand-off at {waiters}: {figure:.1f} PINGs, goal at most {most:g}"
        goals.append((f"{says}, and below {min(peers):.1f}, the best that polls",
                      figure <= most and below, ""))  # fmt: skip
    last = measured[-1]
    says = f"polls of {last.waiters:,} waiters: {last.poll_pct:.1f} % of a core"
    goals.append((f"{says}, goal at most {POLL_GOAL_PCT:g}", last.poll_pct <= POLL_GOAL_PCT, ""))
    by_name: dict[str, dict[int, float]] = defaultdict(dict)
    for (name, tasks), figures in pairs.items():
        by_name[name][tasks] = median(figures)
    return Results(f"redis-server {version}", dict(by_name), found, measured, goals)


def of(found: list[Handoff], kind: str, waiters: int) -> Handoff:
    """Return one of them."""
    return next(x for x in found if (x.kind, x.waiters) == (kind, waiters))


def in_pings(found: Handoff) -> float:
    """Return the median, in PINGs of the same moment."""
    return median(us / ping for us, ping in zip(found.us, found.ping_us, strict=True))


def slow_pings(found: Handoff) -> float:
    """Return the 95th of a hundred, in median PINGs."""
    return quantiles(found.us, n=20)[-1] / median(found.ping_us)


def markdown(found: Results) -> str:
    """Return the report."""
    counts = WAITERS[OURS]
    names = [OURS, HAND_MADE, LOCK, REDIS_LOCK, POTTERY]
    said = "\n".join(f"- {'met' if met else 'NOT met'}: {says}" for says, met, _ in found.goals)
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("redis", "python-redis-lock", "pottery")
    )
    handoff_rows = [
        [kind, *(cell(found.handoffs, kind, waiters) for waiters in counts)] for kind in WAITERS
    ]
    pair_rows = [[n, *(f"{found.pairs[n][tasks]:,.0f}" for tasks in TASKS)] for n in names]
    queue_rows = [
        [f"{x.waiters:,}", f"{x.acquire_us:.1f}", f"{x.renew_us:.1f}", f"{x.release_us:.1f}",
         f"{x.calls['release']:.0f}", f"{x.poll_us:.1f}", f"{x.poll_pct:.1f} %"]
        for x in found.queues
    ]  # fmt: skip
    setting = (
        f"{found.server}, unix socket, Python {platform.python_version()}, {versions};"
        f" {os.cpu_count()} cores. Read the ratios."
    )
    parts = [
        "# What waiting costs",
        setting,
        "## Hand-off",
        HANDOFF_SAYS,
        bench.table(["waiters", *map(str, counts)], handoff_rows),
        "## Pairs per second",
        PAIRS_SAY,
        bench.table(["tasks", *map(str, TASKS)], pair_rows),
        "## Beside a queue",
        QUEUES_SAY,
        bench.table(["waiters", *QUEUE_COLUMNS], queue_rows),
        "## Goals",
        said,
    ]
    return "\n\n".join(parts)


def cell(found: list[Handoff], kind: str, waiters: int) -> str:
    """Median and 95th, or nothing."""
    if waiters not in WAITERS[kind]:
        return "-"
    one = of(found, kind, waiters)
    return f"{in_pings(one):.1f} / {slow_pings(one):.0f}"


def plot(found: Results, path: Path) -> None:
    """Two panels: hand-offs by waiters, pairs per second by tasks."""
    import matplotlib as mpl  # noqa: PLC0415 - only who plots needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - slow to import, for --write alone

    colours = {OURS: "#0072B2", LOCK: "#D55E00", REDIS_LOCK: "#009E73", POTTERY: "#CC79A7",
               HAND_MADE: "#999999"}  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for kind, counts in WAITERS.items():
        figures = [in_pings(of(found.handoffs, kind, waiters)) for waiters in counts]
        left.plot(
            counts, figures, "o-", color=colours[kind], label=kind, lw=3 if kind == OURS else 1.5
        )
    left.set(xscale="log", yscale="log", xlabel="waiters", ylabel="raw PINGs",
             title="From release to the next holder (less is better)")  # fmt: skip
    for name, by_tasks in found.pairs.items():
        style = "o--" if name == HAND_MADE else "o-"
        right.plot(list(by_tasks), list(by_tasks.values()), style, color=colours[name], label=name,
                   lw=3 if name == OURS else 1.5)  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="tasks in one process", ylabel="pairs per second",
              title="Acquire and release, uncontended (more is better)")  # fmt: skip
    right.yaxis.set_minor_formatter("")
    right.set_yticks([1000, 2000, 4000, 8000])
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures: a ratio on a shared machine is news, not a failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--write", action="store_true", help="write waiting.md and waiting.png into results/"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there as JSON")
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)  # pottery logs each lock that it did not get
    found = run(QUICK if args.quick else FULL)
    report = markdown(found)
    print(report)
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "waiting.md").write_text(report + "\n")
        plot(found, RESULTS / "waiting.png")
    if args.json:
        args.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
