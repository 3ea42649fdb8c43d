"""Pools on servers of their own, and the server time and memory of leases in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from agent_sdk import Store
from agent_sdk.keys import Keys
from agent_sdk.protocol.lease import release, renew_call
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

Command = tuple[str | int, ...]

KEYS = Keys("bench")

WORDING = Dispatch(KEYS.base)

WAYS = {"fcall", "evalsha"}
"""Ways to call a verb, and the calls that it is compared with."""

HOST_DEVICES = 8

HOST = "host-0"

LEASE_VERBS = ("acquire", "renew", "release")

DONE = {"GRANTED", "RENEWED", "OUTCOMES", "RELEASED", "REAPED", "REPORTED"}

PLAIN = "SET PX + DEL"

PLAIN_SOURCE = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('DEL', KEYS[1])
"""

CALLER = Caller(HOST, "bench")

CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []

PLACES = {"one core": (0, 0), "two cores": (0, -1)} if len(CORES) > 1 else {"unpinned": (0, 0)}
"""Cores on which client and server run: indexes into CORES."""

CHUNK = 1000
"""Calls in one pipeline."""

VERB_CALLS = 64
"""Calls of each verb in one round."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Server memory of one lease, all that it leaves anywhere, and the largest parts of it."""

    leases: int
    bytes_per_lease: float
    by_key: dict[str, int]


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is text, the others are figures."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
