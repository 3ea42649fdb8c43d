"""Costs of size: many devices, many leases, a long queue, each beside a small one of the same run.

Server time is the scripts' own, from INFO commandstats; memory is what INFO memory gained.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import bench
import verbs

from agent_sdk.protocol.lease import release

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results"

SMALL, LARGE = 8, 16_384
FULL_HOST, WHOLE_MB, PER_AGENT, QUEUE_ROUNDS = "host-0", 24_064, 200, 3

MEMORY_SAYS = """\
Leases of one device each, spread over agents; bytes of the server per lease, all that one leaves
anywhere; µs of acquire, renew and release among so many, in a pool of 64 devices."""

QUEUE_SAYS = """\
So many wait for a host that is full. µs of the server: one more is enqueued; one poll of a waiter
behind others; the release of a whole device, which the head of the queue gets in that script."""


@dataclass(frozen=True, slots=True)
class Leases:
    """A pool with so many leases; memory and server time of each."""

    leases: int
    bytes_each: float
    fill_s: float
    acquire_us: float
    renew_us: float
    release_us: float


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of so many; µs of the server."""

    waiters: int
    enqueue_us: float
    poll_us: float
    handover_us: float


@dataclass(frozen=True, slots=True)
class Results:
    """µs of the lease verbs by how many devices; pools of many leases; queues."""

    server: str
    rounds: int
    devices: dict[int, dict[str, float]]
    leases: tuple[Leases, ...]
    queues: tuple[Queue, ...]


def by_devices(rounds: int) -> dict[int, dict[str, float]]:
    """µs of each verb in both pools, in the same rounds."""
    with ExitStack() as stack:
        pools = {
            n: bench.Pool(stack.enter_context(bench.running_store()), n) for n in (SMALL, LARGE)
        }
        probes = [partial(verbs.level_probe, pool, str(n)) for n, pool in pools.items()]
        samples = verbs.measure(probes, rounds)
    return {
        n: {verb: median(samples[str(n), verb]) for verb in bench.LEASE_VERBS}
        for n in (SMALL, LARGE)
    }


def many_leases(counts: Sequence[int], rounds: int) -> tuple[Leases, ...]:
    """Pools of 64 devices with so many leases of 1 MiB each, all measured in the same rounds."""
    with ExitStack() as stack:
        pools = [bench.Pool(stack.enter_context(bench.running_store()), 64) for _ in counts]
        filled = [fill(pool, count) for pool, count in zip(pools, counts, strict=True)]
        probes = [
            partial(verbs.level_probe, pool, str(n)) for pool, n in zip(pools, counts, strict=True)
        ]
        samples = verbs.measure(probes, rounds)
    return tuple(
        Leases(
            n,
            gained / n,
            took_s,
            *(median(samples[str(n), verb]) for verb in bench.LEASE_VERBS),
        )
        for n, (gained, took_s) in zip(counts, filled, strict=True)
    )


def fill(pool: bench.Pool, count: int) -> tuple[int, float]:
    """Hold so many leases for a day; bytes that the server gained, and seconds that it took."""
    before, began = pool.redis.info("memory")["used_memory"], time.monotonic()
    for start in range(0, count, bench.CHUNK):
        numbers = range(start, min(count, start + bench.CHUNK))
        pool.run_all([bench.ask(f"agent-{n // PER_AGENT}", 1, 86_400) for n in numbers])
    return pool.redis.info("memory")["used_memory"] - before, time.monotonic() - began


def queue_of(waiters: int) -> Queue:
    """Fill a host and have that many waiters for it, none or all of them polling."""
    with bench.running_store() as store:
        pool = bench.Pool(store, 2 * bench.HOST_DEVICES)
        held = [bench.ask("full", WHOLE_MB, 86_400, FULL_HOST) for _ in range(bench.HOST_DEVICES)]
        pool.run_all(held)
        asks = [
            bench.CALLER.request(
                f"waiter-{n // PER_AGENT}", memory_mb=WHOLE_MB, host=FULL_HOST, wait_s=600
            ).call()
            for n in range(waiters)
        ]
        commands = [bench.command(call) for call in asks]
        last = commands[-bench.VERB_CALLS :]
        for start in range(0, waiters - len(last), bench.CHUNK):
            pool.pipe(commands[start : min(start + bench.CHUNK, waiters - len(last))])
        enqueue_us, _ = bench.server_us(pool, partial(pool.pipe, last))
        poll_us, _ = bench.server_us(pool, partial(pool.pipe, last))
        tokens = [str(call.args[1]) for call in held]
        released = [next(release(token)) for token in tokens]
        handover_us, _ = bench.server_us(pool, partial(pool.run_all, released))
    return Queue(waiters, enqueue_us, poll_us, handover_us)


def queues(lengths: Sequence[int], rounds: int) -> tuple[Queue, ...]:
    """Return each length in each round."""
    found: dict[int, list[Queue]] = {n: [] for n in lengths}
    for _ in range(rounds):
        for waiters in lengths:
            found[waiters].append(queue_of(waiters))
    return tuple(
        Queue(
            waiters,
            median(x.enqueue_us for x in rows),
            median(x.poll_us for x in rows),
            median(x.handover_us for x in rows),
        )
        for waiters, rows in found.items()
    )


def markdown(found: Results) -> str:
    """Return the report."""
    setting = (
        f"{found.server}, unix socket, Python {platform.python_version()};"
        f" µs of the server, pipelined; medians of {found.rounds} rounds."
    )
    parts = [
        "# What size costs",
        setting,
        "## Devices",
        bench.table(
            ["devices", *bench.LEASE_VERBS],
            [
                [f"{n:,}", *(f"{row[verb]:.1f}" for verb in bench.LEASE_VERBS)]
                for n, row in found.devices.items()
            ],
        ),
        "## Leases",
        MEMORY_SAYS,
        bench.table(
            ["leases", "bytes each", "MiB", "filled in, s", *bench.LEASE_VERBS],
            [
                [f"{x.leases:,}", f"{x.bytes_each:.0f}", f"{x.bytes_each * x.leases / 2**20:.0f}",
                 f"{x.fill_s:.0f}",
                 f"{x.acquire_us:.1f}", f"{x.renew_us:.1f}", f"{x.release_us:.1f}"]
                for x in found.leases
            ],
        ),
        "## Waiters",
        QUEUE_SAYS,
        bench.table(
            ["waiters", "enqueue", "poll", "release and hand over"],
            [
                [f"{x.waiters:,}", *(f"{y:.1f}" for y in (x.enqueue_us, x.poll_us, x.handover_us))]
                for x in found.queues
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--leases", type=int, default=100_000, help="1000000 takes 1 GB and minutes"
    )
    parser.add_argument("--waiters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--write", action="store_true", help="write scale.md and scale.json into results/"
    )
    args = parser.parse_args(argv)
    with bench.running_store() as store, store.connect() as client:
        version = str(client.info("server")["redis_version"])
    found = Results(
        f"redis-server {version}",
        args.rounds,
        by_devices(args.rounds),
        many_leases((1000, args.leases), args.rounds),
        queues((bench.VERB_CALLS * 2, args.waiters), QUEUE_ROUNDS),
    )
    report = markdown(found)
    print(report)
    if args.write:
        (RESULTS / "scale.md").write_text(report + "\n")
        (RESULTS / "scale.json").write_text(json.dumps(asdict(found), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
