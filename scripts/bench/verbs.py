"""Costs of a lease, beside its alternatives: server time, client time and memory.

Every figure that is compared with another comes from the same rounds: a round takes one sample of
everything, then the next round does, so that a noisy neighbour disturbs all alike. Figures are
medians over rounds; ratios are medians of each round's ratio. The first round warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, TypeVar

import crowd
from redis.exceptions import RedisError

from agent_sdk import LeaseClient, Store
from agent_sdk.keys import Keys
from agent_sdk.protocol.lease import MOST_AT_ONCE, reap, release, renew_call, renew_many_call
from agent_sdk.protocol.messages import new_token
from agent_sdk.protocol.report import changes, report
from agent_sdk.request import Caller
from agent_sdk.scripts import library as functions
from agent_sdk.scripts.dispatch import Dispatch
from agent_sdk.store.embedded import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agent_sdk.protocol.messages import Call

T = TypeVar("T")
Key = tuple[str, str]
"""A thing measured: a group, and a verb or a client in it."""

Samples = dict[Key, list[float]]
Command = tuple[str | int, ...]

KEYS = Keys("bench")
WORDING = Dispatch(KEYS.base)
WAYS = {"fcall", "evalsha"}
"""Ways to call a verb, and the calls that it is compared with."""

MANY = f"{MOST_AT_ONCE} leases"
"""Group of the renewals of one process with so many leases."""

HOST_DEVICES = 8
HOST = "host-0"
LEASE_VERBS = ("acquire", "renew", "release")
QUIET = "report, quiet"
"""Report of a host on whose devices nothing changed, as its reporter sends it."""

VERBS = (*LEASE_VERBS, "reap", "report", QUIET)
DONE = {"GRANTED", "RENEWED", "OUTCOMES", "RELEASED", "REAPED", "REPORTED"}
PLAIN = "SET PX + DEL"
PLAIN_SOURCE = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('DEL', KEYS[1])
"""
SDK, SENT, EXCHANGE, BARE, LOCK, PING = (
    crowd.SDK, "SDK, wait=False", "SDK exchange", "two bare FCALL", crowd.LOCK, "one raw PING",
)  # fmt: skip
PAIRED = (SDK, SENT, EXCHANGE, BARE, LOCK, PING)
CROWDS = (crowd.TASKS, crowd.THREADS)
CALLER = Caller(HOST, "bench")

CLIENT_TIME = """\
One thread, one call after another; 8 simulated devices on one host. On one core, client and server
share its caches and a call costs what both compute; on two, each call also waits until the other
core wakes up, which makes all ratios smaller. The scheduler gives an unpinned client either."""

CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
PLACES = {"one core": (0, 0), "two cores": (0, -1)} if len(CORES) > 1 else {"unpinned": (0, 0)}
"""Cores on which client and server run: indexes into CORES."""

LOCK_GOALS = {"one core": 0.75, "two cores": 0.9}
"""Goals for an SDK pair, in Lock pairs."""

CHUNK = 1000
"""Calls in one pipeline."""

VERB_CALLS = 64
"""Calls of each verb in one round."""

LEVEL_CYCLES = 8
"""Measurements of a level in one round."""


@dataclass(frozen=True, slots=True)
class Effort:
    """The extent of the measurements."""

    rounds: int
    pairs: int
    levels: tuple[tuple[int, int], ...]
    footprint: int


QUICK = Effort(21, 100, ((8, 0), (64, 0), (1024, 0), (64, 1000)), 20_000)
FULL = Effort(31, 200, ((8, 0), (64, 0), (1024, 0), (16_384, 0), (64, 1000), (64, 100_000)), 20_000)


@dataclass(frozen=True, slots=True)
class VerbCost:
    """Server time of one verb, one call at a time and many in one pipeline, in µs and in PLAINs."""

    verb: str
    single_us: float
    single_ratio: float
    pipelined_us: float
    pipelined_ratio: float


@dataclass(frozen=True, slots=True)
class VerbCalls:
    """Calls of one run of a verb's script."""

    verb: str
    calls: int
    by_command: dict[str, int]


@dataclass(frozen=True, slots=True)
class LevelCost:
    """Server time in a pool of some size, in µs."""

    devices: int
    leases: int
    acquire_us: float
    renew_us: float
    release_us: float


@dataclass(frozen=True, slots=True)
class PairCost:
    """One client's acquire and release, in µs, in raw PINGs, bare pairs and Lock pairs."""

    place: str
    client: str
    us: float
    pings: float
    bares: float
    locks: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """Server memory of one lease, all that it leaves anywhere, and the largest parts of it."""

    leases: int
    bytes_per_lease: float
    by_key: dict[str, int]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, and the figure that came out."""

    name: str
    limit: float
    figure: float

    @property
    def met(self) -> bool:
        """Return whether the figure is within the limit."""
        return self.figure <= self.limit


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run found."""

    server: str
    rounds: int
    verbs: tuple[VerbCost, ...]
    calls: tuple[VerbCalls, ...]
    levels: tuple[LevelCost, ...]
    pairs: tuple[PairCost, ...]
    crowds: tuple[tuple[str, float, float, float], ...]
    footprint: Footprint
    goals: tuple[Goal, ...]


@contextmanager
def running_store() -> Iterator[Store]:
    """Run a server of our own on a unix socket, for the length of a block."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("no redis-server on PATH: apt-get install redis-server")
    folder = Path(tempfile.mkdtemp(prefix="gpu-bench-"))
    command = [binary, "--port", "0", "--unixsocket", "s", "--save", "", "--dir", str(folder)]
    command += [word for line in TABLES.splitlines() for word in f"--{line}".split()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    store = Store(f"unix://{folder / 's'}", timeout_s=10.0)
    try:
        wait_ready(store)
        yield store
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_ready(store: Store) -> None:
    """Wait until the server answers."""
    with store.connect() as redis:
        for _ in range(500):
            with suppress(RedisError):
                redis.ping()
                return
            time.sleep(0.02)
    raise SystemExit(f"redis-server does not answer at {store.url}")


class Pool:
    """A pool on a server of its own, of hosts with 8 devices each."""

    def __init__(self, store: Store, devices: int) -> None:
        self.store = store
        self.redis: Any = store.connect()  # redis-py's types speak of sync and async at once
        self.plain_sha: str = self.redis.script_load(PLAIN_SOURCE)
        functions.load_own(self.redis)
        hosts = [f"host-{n}" for n in range(devices // HOST_DEVICES)]
        self.run_all([report_of(host) for host in hosts])

    def run(self, calls: Sequence[Call]) -> list[list[Any]]:
        """Run verbs one by one."""
        return checked([self.redis.execute_command(*command(call)) for call in calls])

    def run_all(self, calls: Sequence[Call]) -> list[list[Any]]:
        """Run verbs in pipelines."""
        replies: list[list[Any]] = []
        for start in range(0, len(calls), CHUNK):
            replies += self.pipe([command(call) for call in calls[start : start + CHUNK]])
        return checked(replies)

    def pipe(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one pipeline."""
        pipe = self.redis.pipeline(transaction=False)
        for each in commands:
            pipe.execute_command(*each)
        return list(pipe.execute())

    def plain(self, times: int, *, pipelined: bool) -> None:
        """Run the script that everything is compared with."""
        each = ("EVALSHA", self.plain_sha, 1, "plain", new_token(), 600_000)
        if pipelined:
            self.pipe([each] * times)
        else:
            for _ in range(times):
                self.redis.execute_command(*each)

    def rows(self, host: str) -> dict[str, dict[str, str]]:
        """Return a host's devices as they are stored."""
        uuids = self.redis.smembers(KEYS.devices(host))
        return {uuid: self.redis.hgetall(KEYS.device(uuid)) for uuid in uuids}

    def fill(self, leases: int) -> None:
        """Hold leases for a day, spread over agents within the policy's limit of each."""
        self.run_all([ask(f"agent-{n // 200}", 1, 86_400) for n in range(leases)])

    def stats(self) -> dict[str, tuple[int, int]]:
        """Return calls and µs of every command since the last reset, except our questions."""
        found = self.redis.info("commandstats")
        rows = {name.removeprefix("cmdstat_"): row for name, row in found.items()}
        return {
            name: (row["calls"], row["usec"])
            for name, row in rows.items()
            if name != "info" and not name.startswith("config")
        }


def command(call: Call) -> Command:
    """Return a verb's call as it goes to the server."""
    return WORDING.command(call)


def checked(replies: list[list[Any]]) -> list[list[Any]]:
    """Return the replies, all successes: the time of a refusal is not measured."""
    if failed := [reply for reply in replies if reply[0] not in DONE]:
        raise SystemExit(f"the broker answered {failed[0]}")
    return replies


def ask(agent: str = "bench", memory_mb: int = 8, ttl_s: int = 600, host: str = "any") -> Call:
    """Return an acquire of one device, with a new token."""
    return CALLER.request(agent, memory_mb=memory_mb, ttl_s=ttl_s, host=host).call()


def report_of(host: str, rows: Mapping[str, Mapping[str, str]] | None = None) -> Call:
    """Return a host's report of 8 devices as an NVML reporter makes it; alive for a day.

    rows: what the pool has of them; None: nothing, so everything is told.
    """
    said: dict[str, str | int] = {
        "name": "NVIDIA Simulated 24 GB", "model": "sim", "total_mb": 24_576, "system_mb": 512,
        "used_mb": 0, "state": "ok", "reason": "", "simulated": 1, "utilization_gpu_pct": "37.000",
        "memory_utilization_pct": "12.000", "temperature_c": "54.000", "power_draw_w": "143.250",
        "pcie_tx_kb_s": "", "pcie_rx_kb_s": "", "processes": "[]", "reported_unleased_mb": 0,
        "unattributed_mb": 0, "cooling_used_mb": 0, "cooling_unattributed_mb": 0, "cooling": "",
    }  # fmt: skip
    told = {
        f"SIM-{host}-{index}": (("index", index), *said.items()) for index in range(HOST_DEVICES)
    }
    devices = tuple(
        (uuid, changes(fields, rows[uuid]) if rows else fields) for uuid, fields in told.items()
    )
    return next(
        report(
            host,
            devices,
            deadline_ms=86_400_000,
            sampled_ms=0,
            epoch="",
            safe_mode=False,
            version="bench",
        )
    )


def server_us(pool: Pool, work: Callable[[], T]) -> tuple[float, T]:
    """Mean server time of one FCALL or EVALSHA of all that the work runs, and what it returned."""
    pool.redis.config_resetstat()
    result = work()
    ran = [row for name, row in pool.stats().items() if name in WAYS]
    return sum(us for _, us in ran) / sum(calls for calls, _ in ran), result


def lease_costs(pool: Pool, times: int, *, pipelined: bool) -> dict[str, float]:
    """Server time per call while so many leases are acquired, renewed and given back."""
    run = pool.run_all if pipelined else pool.run
    asks = [ask() for _ in range(times)]
    tokens = [str(call.args[1]) for call in asks]
    acquire_us, grants = server_us(pool, partial(run, asks))
    renewals = [renew_call(t, int(g[5]), None) for t, g in zip(tokens, grants, strict=True)]
    renew_us, _ = server_us(pool, partial(run, renewals))
    release_us, _ = server_us(pool, partial(run, [next(release(token)) for token in tokens]))
    return {"acquire": acquire_us, "renew": renew_us, "release": release_us}


def verb_probe(pool: Pool, *, pipelined: bool) -> dict[Key, float]:
    """Server time of every verb and of the plain script."""
    run, times = pool.run_all if pipelined else pool.run, VERB_CALLS
    costs = lease_costs(pool, times, pipelined=pipelined)
    others: dict[str, Callable[[], object]] = {
        "reap": partial(run, [next(reap())] * times),
        "report": partial(run, [report_of(HOST)] * (times // HOST_DEVICES)),
        QUIET: partial(run, [report_of(HOST, pool.rows(HOST))] * (times // HOST_DEVICES)),
        PLAIN: partial(pool.plain, times, pipelined=pipelined),
    }
    for name, work in others.items():
        costs[name], _ = server_us(pool, work)
    return in_group("pipelined" if pipelined else "single", costs)


def many_probe(pool: Pool) -> dict[Key, float]:
    """Server time per lease of so many renewals by one call each, and by one call for all."""
    asks = [ask() for _ in range(MOST_AT_ONCE)]
    grants = pool.run_all(asks)
    held = [(str(a.args[1]), int(g[5]), None) for a, g in zip(asks, grants, strict=True)]
    each_us, _ = server_us(pool, partial(pool.run_all, [renew_call(*lease) for lease in held]))
    whole_us, _ = server_us(pool, partial(pool.run, [renew_many_call(held)]))
    pool.run_all([next(release(token)) for token, *_ in held])
    return in_group(MANY, {"renew": each_us, "renew_many": whole_us / MOST_AT_ONCE})


def level_probe(pool: Pool, name: str) -> dict[Key, float]:
    """Server time of the lease verbs, 8 leases at a time: so many are idle even in a pool of 8."""
    samples = [lease_costs(pool, HOST_DEVICES, pipelined=True) for _ in range(LEVEL_CYCLES)]
    return in_group(name, {verb: mean(s[verb] for s in samples) for verb in LEASE_VERBS})


def pair_probe(
    server: int, place: str, pairs: dict[str, Callable[[], object]], times: int
) -> dict[Key, float]:
    """Client time of each pair, with client and server where the place says."""
    with placed(server, place):
        return in_group(place, {name: wall_us(pair, times) for name, pair in pairs.items()})


def crowd_probe(server: int, many: Callable[[], dict[Key, float]]) -> dict[Key, float]:
    """Client time of the pairs of many tasks and threads, the server on a core of its own."""
    with placed(server, [*PLACES][-1]):
        return many()


@contextmanager
def placed(server: int, place: str) -> Iterator[None]:
    """Keep this process and the server on their cores for the length of a block."""
    pids = (0, server) if len(CORES) > 1 else ()
    for pid, core in zip(pids, PLACES[place], strict=False):
        os.sched_setaffinity(pid, {CORES[core]})
    try:
        yield
    finally:
        for pid in pids:
            os.sched_setaffinity(pid, CORES)


def in_group(group: str, figures: dict[str, float]) -> dict[Key, float]:
    """Figures by group and name."""
    return {(group, name): figure for name, figure in figures.items()}


def wall_us(work: Callable[[], object], times: int) -> float:
    """Mean µs of one call as the caller sees it."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


def pairs_of(pool: Pool, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return the compared clients, each on its own connection with the same settings."""
    sdk = stack.enter_context(LeaseClient(pool.store, pool=KEYS.pool_name, hostname=HOST))
    sending = stack.enter_context(
        LeaseClient(pool.store, pool=KEYS.pool_name, hostname=HOST, wait_release=False)
    )
    bare: Any = stack.enter_context(pool.store.connect())
    lock = stack.enter_context(pool.store.connect()).lock("lock", timeout=600)
    wire = stack.enter_context(socket.socket(socket.AF_UNIX))
    wire.connect(pool.store.url.removeprefix("unix://"))
    acquiring, releasing = command(ask("agent", host=HOST)), command(next(release(new_token())))

    def with_sdk() -> None:
        sdk.release(sdk.acquire("agent", memory_mb=8, ttl_s=600))

    def with_sent() -> None:
        sending.release(sending.acquire("agent", memory_mb=8, ttl_s=600))

    held = [sdk.acquire("agent", memory_mb=8, ttl_s=600)]

    def with_exchange() -> None:
        held[0] = sdk.exchange(held[0], "agent", memory_mb=8, ttl_s=600)

    def with_bare() -> None:
        token = new_token()
        bare.execute_command(*acquiring[:5], token, *acquiring[6:])
        bare.execute_command(*releasing[:5], token, *releasing[6:])

    def with_lock() -> None:
        lock.acquire()
        lock.release()

    def with_ping() -> None:
        wire.sendall(b"PING\r\n")
        wire.recv(64)

    return {SDK: with_sdk, SENT: with_sent, EXCHANGE: with_exchange, BARE: with_bare,
            LOCK: with_lock, PING: with_ping}  # fmt: skip


def measure(probes: Sequence[Callable[[], dict[Key, float]]], rounds: int) -> Samples:
    """Run every probe once a round, in rotating order; the first round is dropped."""
    samples: Samples = defaultdict(list)
    for number in range(rounds + 1):
        first = number % len(probes)
        for probe in (*probes[first:], *probes[:first]):
            for key, figure in probe().items():
                samples[key] += [figure] if number else []
    return samples


def ratio(samples: Samples, over: Key, under: Key) -> float:
    """Return the median of the ratios of each round."""
    return median(a / b for a, b in zip(samples[over], samples[under], strict=True))


def count_calls(pool: Pool) -> tuple[VerbCalls, ...]:
    """Count the calls of each verb's script, in a pool without leases."""
    pool.run([next(reap())])  # a pool that slept asks one thing more, once
    asking = ask()
    token = str(asking.args[1])
    calls = (asking, renew_call(token, None, None), next(release(token)), next(reap()))
    return tuple(calls_of(pool, call) for call in (*calls, report_of(HOST)))


def calls_of(pool: Pool, call: Call) -> VerbCalls:
    """Return the calls of one call's script."""
    pool.redis.config_resetstat()
    pool.run([call])
    by_command = {name: calls for name, (calls, _) in pool.stats().items() if name not in WAYS}
    by_command = dict(sorted(by_command.items(), key=lambda row: (-row[1], row[0])))
    return VerbCalls(call.verb, sum(by_command.values()), by_command)


def weigh(leases: int) -> Footprint:
    """Memory of so many leases in a new pool, all that they leave anywhere counted."""
    with running_store() as store:
        pool = Pool(store, 64)
        redis = pool.redis
        before = redis.info("memory")["used_memory"]
        pool.fill(leases)
        after = redis.info("memory")["used_memory"]
        each = {"record": KEYS.record("*"), "lease key": KEYS.lease("*", "*")}
        shared = {"deadlines": KEYS.deadlines, "events": KEYS.events}
        by_key = {name: weight_of_one(pool, pattern) for name, pattern in each.items()}
        for name, key in shared.items():
            by_key[name] = round(redis.memory_usage(key, samples=0) / leases)
    return Footprint(leases, (after - before) / leases, by_key)


def weight_of_one(pool: Pool, pattern: str) -> int:
    """Memory of some key whose name matches."""
    key = next(pool.redis.scan_iter(pattern, count=1000))
    return int(pool.redis.memory_usage(key))


def level_name(devices: int, leases: int) -> str:
    """Return the name of a level among the samples."""
    return f"{devices} devices, {leases} leases"


def run(effort: Effort) -> Results:
    """Everything, in one run."""
    with ExitStack() as stack:
        pools = {}
        for devices, leases in effort.levels:
            pool = Pool(stack.enter_context(running_store()), devices)
            pool.fill(leases)
            pools[level_name(devices, leases)] = pool
        middle = pools[level_name(64, 0)]
        calls = count_calls(middle)
        small = Pool(stack.enter_context(running_store()), HOST_DEVICES)
        pairs = pairs_of(small, stack)
        many = stack.enter_context(crowd.crowds(small.store, KEYS.pool_name, HOST))
        server = int(small.redis.info("server")["process_id"])
        probes = [
            partial(verb_probe, middle, pipelined=False),
            partial(verb_probe, middle, pipelined=True),
            partial(many_probe, middle),
            *(partial(level_probe, pool, name) for name, pool in pools.items()),
            *(partial(pair_probe, server, place, pairs, effort.pairs) for place in PLACES),
            partial(crowd_probe, server, many),
        ]
        samples = measure(probes, effort.rounds)
        version = middle.redis.info("server")["redis_version"]
    return results(effort, version, samples, calls, weigh(effort.footprint))


def results(
    effort: Effort,
    version: str,
    samples: Samples,
    calls: tuple[VerbCalls, ...],
    footprint: Footprint,
) -> Results:
    """Return the results of the samples."""
    goals = [
        Goal(f"SDK pair / {name}, {place}", limit, ratio(samples, (place, SDK), (place, other)))
        for name, other, limit in (("bare pair", BARE, 1.15),)
        for place in PLACES
    ]
    for place, limit in LOCK_GOALS.items():
        if place in PLACES:
            for mine, most in ((SDK, limit), (SENT, limit), (EXCHANGE, 0.6)):
                figure = ratio(samples, (place, mine), (place, LOCK))
                goals.append(Goal(f"{mine} / Lock pair, {place}", most, figure))
    goals += [
        Goal(f"SDK pair / Lock pair, {name}", limit, ratio(samples, (name, SDK), (name, LOCK)))
        for name, limit in zip(CROWDS, (0.5, 0.625), strict=True)
    ]
    at_once = ratio(samples, (MANY, "renew_many"), (MANY, "renew"))
    goals.append(Goal(f"renew_many / renew, per lease, {MANY}", 0.4, at_once))
    goals.append(Goal("bytes per lease", 900, footprint.bytes_per_lease))
    return Results(
        server=f"redis-server {version}",
        rounds=effort.rounds,
        verbs=tuple(verb_cost(samples, verb) for verb in (*VERBS, PLAIN)),
        calls=calls,
        levels=tuple(level_cost(samples, *level) for level in effort.levels),
        pairs=tuple(pair_cost(samples, place, client) for place in PLACES for client in PAIRED),
        crowds=tuple(
            (
                name,
                median(samples[name, SDK]),
                median(samples[name, LOCK]),
                ratio(samples, (name, SDK), (name, LOCK)),
            )
            for name in CROWDS
        ),
        footprint=footprint,
        goals=tuple(goals),
    )


def verb_cost(samples: Samples, verb: str) -> VerbCost:
    """Return a verb's row of the report."""
    single, pipelined = ("single", verb), ("pipelined", verb)
    return VerbCost(
        verb,
        median(samples[single]),
        ratio(samples, single, ("single", PLAIN)),
        median(samples[pipelined]),
        ratio(samples, pipelined, ("pipelined", PLAIN)),
    )


def level_cost(samples: Samples, devices: int, leases: int) -> LevelCost:
    """Return a level's row of the report."""
    name = level_name(devices, leases)
    return LevelCost(devices, leases, *(median(samples[name, verb]) for verb in LEASE_VERBS))


def pair_cost(samples: Samples, place: str, client: str) -> PairCost:
    """Return a client's row of the report."""
    mine = (place, client)
    pings, bares, locks = (ratio(samples, mine, (place, other)) for other in (PING, BARE, LOCK))
    return PairCost(place, client, median(samples[mine]), pings, bares, locks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is text, the others are figures."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(found: Results) -> str:
    """Return the report."""
    foot = found.footprint
    setting = (
        f"{found.server}, unix socket, Python {platform.python_version()}, redis-py"
        f" {metadata.version('redis')}, {os.cpu_count()} cores; medians of {found.rounds} rounds,"
        " everything interleaved."
    )
    weight = (
        f"{foot.bytes_per_lease:.0f} bytes, over {foot.leases:,} leases of one device, everything"
        f" counted: {', '.join(f'{name} {size}' for name, size in foot.by_key.items())}; the rest"
        " is the server's tables of keys and of their ends, agents and stats."
    )
    parts = [
        "# What a lease costs",
        setting,
        "## Server time of a verb",
        f"64 devices, no other leases, host any. `x` = times an EVALSHA of {PLAIN}, same rounds.",
        table(
            ["verb", "µs, one by one", "x", "µs, pipelined", "x"],
            [
                [v.verb, f"{v.single_us:.1f}", f"{v.single_ratio:.1f}",
                 f"{v.pipelined_us:.1f}", f"{v.pipelined_ratio:.1f}"]
                for v in found.verbs
            ],
        ),
        "## What a verb calls",
        table(
            ["verb", "redis.calls", "which"],
            [
                [c.verb, str(c.calls), ", ".join(f"{n} {name}" for name, n in c.by_command.items())]
                for c in found.calls
            ],
        ),
        "## Server time by size",
        "µs, pipelined, host any, 8 leases at a time. Where leases are many, no device is idle.",
        table(
            ["devices", "leases", *LEASE_VERBS],
            [
                [f"{level.devices:,}", f"{level.leases:,}", f"{level.acquire_us:.1f}",
                 f"{level.renew_us:.1f}", f"{level.release_us:.1f}"]
                for level in found.levels
            ],
        ),
        "## Client time of a pair",
        CLIENT_TIME,
        table(
            ["client and server on", "client", "µs", "PINGs", "x bare", "x Lock"],
            [
                [p.place, p.client, f"{p.us:.0f}", f"{p.pings:.2f}", f"{p.bares:.2f}",
                 f"{p.locks:.2f}"]
                for p in found.pairs
            ],
        ),
        "## A hundred clients at once",
        f"µs per pair, client and server on {[*PLACES][-1]}.",
        table(
            ["clients", SDK, LOCK, "x"],
            [[name, *(f"{us:.0f}" for us in both), f"{share:.2f}"]
             for name, *both, share in found.crowds],
        ),
        "## Memory of a lease",
        weight,
        "## Goals",
        "\n".join(map(verdict, found.goals)),
    ]  # fmt: skip
    return "\n\n".join(parts)


def verdict(goal: Goal) -> str:
    """Return one line that says whether a goal is met."""
    said = "met" if goal.met else "NOT met"
    return f"- {said}: {goal.name} {goal.figure:.4g}, goal at most {goal.limit:g}"


def main(argv: Sequence[str] | None = None) -> int:
    """0 whatever the figures: a ratio on a shared machine is news, not a failure."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The goals, and what to compare: read the ratios, not the µs, which are this"
        " machine's. Starts its own redis-servers in temporary folders; touches no other.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"under 25 s: {QUICK.rounds} rounds instead of {FULL.rounds}, without the largest"
        " pools (16,384 devices; 100,000 leases)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the same figures there as JSON"
    )
    args = parser.parse_args(argv)
    found = run(QUICK if args.quick else FULL)
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
