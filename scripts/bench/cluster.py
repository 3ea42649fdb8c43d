"""Throughput of a Cluster: four pools on three shards beside one pool on one server.

A pool is in one slot, so a Cluster makes no pool faster: it lets others run beside it. How many
leases per second a server can do is 1 / (its time per pair). Throughput here is the machine's, on
which clients and servers share the cores: with two of them, what the servers could do together
cannot be seen, only how little of it the clients ask for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import bench

from agent_sdk import AsyncLeaseClient, Store
from agent_sdk.keys import Keys
from agent_sdk.scripts import library as functions
from agent_sdk.scripts.dispatch import Dispatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS = Path(__file__).parent / "results"

SLOTS = 16_384

ONE, MANY = "1 pool, 1 server", "4 pools, 3 shards"

POOLS = ("bench", "bench-2", "bench-3", "bench-4")
"""The first is that of `bench`; of the four, one shard has two."""

CLIENTS, TASKS = 4, 25

SAYS = """\
Acquire and release by four processes of 25 tasks each. *Could*: pairs per second for which the
servers' time in the two scripts is enough where each has a core of its own; one of the three shards
has two of the four pools, so that four pools asked alike reach twice what one server does."""

SHOWS = """\
Clients and servers share the cores of this machine, and the clients take most of them: what three
shards with a core each do together cannot be seen here. What can: a verb costs a shard what it
costs a server alone, and the busiest of three has less to do."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Four processes of 25 tasks each that acquire and release.

    Attributes:
        pairs_per_s: of all together.
        server_us: time that servers computed, per pair.
        busiest_pct: share of a core that the busiest server took.
    """

    setup: str
    pairs_per_s: float
    server_us: float
    busiest_pct: float


@dataclass(frozen=True, slots=True)
class Results:
    """Medians; verbs: server µs per call of each verb, alone on a server and on a shard."""

    server: str
    cores: int
    verbs: dict[str, dict[str, float]]
    throughput: tuple[Throughput, ...]

    @property
    def ceilings(self) -> dict[str, float]:
        """Pairs per second that servers with a core each could compute, by acquire + release.

        Four pools that are asked alike are done when the shard that has two of them is.
        """
        us = {setup: row["acquire"] + row["release"] for setup, row in self.verbs.items()}
        return {ONE: 1e6 / us[ONE], MANY: 2e6 / us[MANY]}


def free_port() -> int:
    """Return a loopback port without a listener at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(*options: str) -> Iterator[Store]:
    """Run a server of our own on a loopback port."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("no redis-server on PATH: apt-get install redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as folder:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
            try:
                store = Store(f"redis://127.0.0.1:{port}", timeout_s=10)
                bench.wait_ready(store)
                yield store
            finally:
                process.terminate()


@contextmanager
def cluster() -> Iterator[tuple[Store, list[Store]]]:
    """Three shards with a third of the slots each: the Cluster, and each of them."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(3)]
        option = ("--cluster-enabled", "yes", "--cluster-port")
        nodes = [stack.enter_context(server(*option, str(bus))) for bus in buses]
        admins: list[Any] = [stack.enter_context(node.connect()) for node in nodes]
        for part, admin in enumerate(admins):
            slots = (-(-part * SLOTS // 3), -(-(part + 1) * SLOTS // 3) - 1)
            admin.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
        for one, other in combinations(range(3), 2):
            port = nodes[other].url.rpartition(":")[2]
            admins[one].execute_command("CLUSTER MEET", "127.0.0.1", port, buses[other])
        while not all("'cluster_state': 'ok'" in str(a.cluster("INFO")) for a in admins):
            time.sleep(0.05)
        where = ",".join(node.url.removeprefix("redis://") for node in nodes)
        yield Store(f"redis+cluster://{where}", 10, bench.KEYS.base), nodes


def register(store: Store, pool: str) -> None:
    """Eight devices in a pool."""
    base, call = Keys(pool).base, bench.report_of(bench.HOST)
    with replace(store, key=base).connect() as redis:
        functions.load_own(redis)
        redis.execute_command(*Dispatch(base).command(call))


def work(url: str, pool: str, seconds: float, begin: Any, done: Any) -> None:
    """Pairs by 25 tasks for so long, in a process of its own."""

    async def one(client: AsyncLeaseClient, until: float) -> int:
        pairs = 0
        while time.monotonic() < until:
            await client.release(await client.acquire("agent", memory_mb=8, ttl_s=600))
            pairs += 1
        return pairs

    async def several() -> int:
        async with AsyncLeaseClient(Store(url, 10), pool=pool, hostname=bench.HOST) as client:
            await client.devices()
            begin.wait()
            until = time.monotonic() + seconds
            return sum(await asyncio.gather(*(one(client, until) for _ in range(TASKS))))

    done.put(asyncio.run(several()))


def cpu_s(stores: Sequence[Store]) -> list[float]:
    """Return seconds that each server has computed."""
    found = []
    for store in stores:
        with store.connect() as redis:
            row: Any = redis.info("cpu")
            found.append(row["used_cpu_user"] + row["used_cpu_sys"])
    return found


def throughput(
    setup: str, url: str, pools: Sequence[str], servers: Sequence[Store], seconds: float
) -> Throughput:
    """Return one run of all four processes."""
    spawn = multiprocessing.get_context("spawn")
    begin, done = spawn.Barrier(CLIENTS + 1), spawn.Queue()
    processes = [
        spawn.Process(target=work, args=(url, pools[n % len(pools)], seconds, begin, done))
        for n in range(CLIENTS)
    ]
    for process in processes:
        process.start()
    begin.wait()
    before, began = cpu_s(servers), time.monotonic()
    pairs = sum(done.get() for _ in processes)
    took_s = time.monotonic() - began
    spent = [now - then for now, then in zip(cpu_s(servers), before, strict=True)]
    for process in processes:
        process.join()
    return Throughput(setup, pairs / took_s, sum(spent) / pairs * 1e6, 100 * max(spent) / took_s)


def middle(runs: Sequence[Throughput]) -> Throughput:
    """Return the medians of several runs."""
    return Throughput(
        runs[0].setup,
        median(run.pairs_per_s for run in runs),
        median(run.server_us for run in runs),
        median(run.busiest_pct for run in runs),
    )


def run(rounds: int, seconds: float) -> Results:
    """Everything, both setups in each round."""
    with server() as alone, cluster() as (many, nodes):
        info: Any = alone.connect().info("server")
        pools = {ONE: bench.Pool(alone, 8), MANY: bench.Pool(many, 8)}
        for pool in POOLS[1:]:
            register(many, pool)
        costs: dict[str, list[dict[str, float]]] = {ONE: [], MANY: []}
        runs: dict[str, list[Throughput]] = {ONE: [], MANY: []}
        for _ in range(rounds):
            for setup, pool in pools.items():
                costs[setup].append(bench.lease_costs(pool, bench.VERB_CALLS, pipelined=True))
            both = {ONE: (alone.url, POOLS[:1], [alone]), MANY: (many.url, POOLS, nodes)}
            for setup, (url, names, servers) in both.items():
                runs[setup].append(throughput(setup, url, names, servers, seconds))
    by_verb = {
        setup: {verb: median(row[verb] for row in rows) for verb in bench.LEASE_VERBS}
        for setup, rows in costs.items()
    }
    cores = len(os.sched_getaffinity(0))
    return Results(info["redis_version"], cores, by_verb, tuple(map(middle, runs.values())))


def markdown(found: Results) -> str:
    """Return the results as a page."""
    lines = [
        "# What a Cluster gives",
        "",
        f"redis-server {found.server}, loopback TCP, {found.cores} cores.",
        "",
        "Server time in µs per call, pipelined:",
        "",
        "| | acquire | renew | release |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {setup} | {row['acquire']:.1f} | {row['renew']:.1f} | {row['release']:.1f} |"
            for setup, row in found.verbs.items()
        ),
        "",
        SAYS,
        "",
        "| | pairs/s here | server µs per pair, I/O included | busiest server, of a core | could |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {row.setup} | {row.pairs_per_s:,.0f} | {row.server_us:.0f} | "
            f"{row.busiest_pct:.0f} % | {found.ceilings[row.setup]:,.0f} |"
            for row in found.throughput
        ),
        "",
        SHOWS,
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--write", action="store_true", help="write cluster.md into results/")
    options = parser.parse_args(argv)
    found = run(options.rounds, options.seconds)
    text = markdown(found)
    if options.write:
        (RESULTS / "cluster.md").write_text(text)
    print(json.dumps(asdict(found), indent=2) if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
