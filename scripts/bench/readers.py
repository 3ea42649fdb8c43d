"""Costs of reading a large pool through one broker, and what its other clients feel meanwhile.

A server of our own is filled by the verbs, and a broker is started beside it. Each reading is
repeated while another process asks /health, and one asks for leases, in a loop. Their times show
the hold-up of the broker's event loop, and the machine's load. CPU and memory are the broker's own;
so is the longest turn, the CPU time of its loop's thread between two timers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bench
from over_http import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.synchronize import Event

PER_AGENT: Final = 200

LEAST_S: Final = 3.0
"""Seconds for which a reading is repeated, at least."""

HEAD: Final = 900
"""Bytes of a stream's beginning before its first message."""

PAUSE_S: Final = 0.004
"""Seconds between two questions of a client that measures."""

SERVE: Final = """
import asyncio, atexit, json, os, signal, time
import uvicorn

turns, begin = [], uvicorn.Server.startup

def beat(loop, before):
    now = time.thread_time()
    turns.append(now - before)
    loop.call_later(0.002, beat, loop, now)

async def startup(server, *args, **options):
    beat(asyncio.get_running_loop(), time.thread_time())
    await begin(server, *args, **options)

uvicorn.Server.startup = startup
signal.signal(signal.SIGUSR2, lambda *_: turns.clear())
atexit.register(lambda: json.dump(turns, open(os.environ["TURNS"], "w")))
from broker.cli import main
main()
"""
"""A broker that counts the CPU time of its loop between two timers of 2 ms; SIGUSR2 begins anew."""

ROUTES: Final = {
    "nothing": "",
    "/allocations": "/allocations",
    "/allocations, 100 of them": "/allocations?limit=100",
    "/allocations of an agent": "/allocations?agent=agent-7",
    "/allocations of a host": "/allocations?host=host-7",
    "/gpu/info": "/gpu/info",
    "/gpu/info, 100 of them": "/gpu/info?limit=100",
    "/gpu/info of a host": "/gpu/info?host=host-7",
    "/queue": "/queue",
    "/hosts": "/hosts",
    "/metrics": "/metrics",
    "/live, all of it": "/live",
    "the page": "/live?most=100",
}
"""Readings, by what the report calls them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One kind of reading, and what others felt meanwhile; times in ms, memory in MiB.

    Attributes:
        ms: until the last byte; of a stream, until its first message is whole.
        cpu_ms: of the broker, for one of them alone.
        held_ms: the longest turn of the loop, in CPU time; and of a thousand the second longest.
        health, lease: median, 99th percentile and longest answer meanwhile.
        rss_mb: of the broker, the largest so far.
    """

    name: str
    ms: float
    size: int
    cpu_ms: float
    held_ms: tuple[float, float]
    health: tuple[float, float, float]
    lease: tuple[float, float, float]
    rss_mb: float


def fill(pool: bench.Pool, leases: int) -> None:
    """Hold leases for a day, each on one device."""
    for start in range(0, leases, bench.CHUNK):
        numbers = range(start, min(leases, start + bench.CHUNK))
        pool.run_all([bench.ask(f"agent-{n // PER_AGENT}", 1, 86_400) for n in numbers])


def enqueue(pool: bench.Pool, waiters: int) -> None:
    """Have so many requests wait for whole devices that are all in use."""
    asks = [
        bench.CALLER.request(f"waiter-{n}", memory_mb=24_064, host="host-0", wait_s=600).call()
        for n in range(waiters)
    ]
    pool.pipe([bench.command(call) for call in asks])


def get(port: int, path: str) -> tuple[float, int]:
    """Return the seconds and the bytes of an answer; of a stream, of its first `reset`."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as wire:
        wire.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        parts, end = [], b""
        while part := wire.recv(1 << 18):
            parts.append(len(part))
            end = end[-64:] + part[-64:]
            if path.startswith("/live") and sum(parts) > HEAD and _whole(end):
                break
    return time.perf_counter() - began, sum(parts)


def _whole(end: bytes) -> bool:
    """Tell whether a stream's bytes end with a message that is no sign of life."""
    return end.rstrip(b"\r\n0123456789abcdef").endswith(b"}") and b"\n\n" in end[-16:]


def ask_health(port: int, began: Event, ended: Event, found: multiprocessing.SimpleQueue) -> None:
    """Ask /health until it is over, and tell the times."""
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        began.set()
        while not ended.is_set():
            at = time.perf_counter()
            wire.sendall(head)
            wire.recv(1 << 16)
            times.append(time.perf_counter() - at)
            time.sleep(PAUSE_S)
    found.put(times)


def ask_leases(port: int, began: Event, ended: Event, found: multiprocessing.SimpleQueue) -> None:
    """Acquire and release over HTTP until it is over, and tell the times of /lease."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times: list[float] = []

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer: dict[str, Any] = json.loads(client.getresponse().read())
        return answer

    began.set()
    while not ended.is_set():
        at = time.perf_counter()
        token = post("/lease", {"agent": "meanwhile", "min_memory_mb": 1}).get("token")
        times.append(time.perf_counter() - at)
        if token:  # a broker that is held up answers 503
            post("/release", {"token": token})
        time.sleep(PAUSE_S)
    found.put(times)


class Meanwhile:
    """Clients in other processes that ask while something is read."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = multiprocessing.Event()
        self._found: list[multiprocessing.SimpleQueue] = []
        self._processes: list[multiprocessing.Process] = []
        for work in (ask_health, ask_leases):
            self._start(work)

    def _start(self, work: Callable[..., None]) -> None:
        began, found = multiprocessing.Event(), multiprocessing.SimpleQueue()
        process = multiprocessing.Process(target=work, args=(self._port, began, self._ended, found))
        process.start()
        began.wait(60)
        self._found.append(found)
        self._processes.append(process)

    def stop(self) -> list[tuple[float, float, float]]:
        """Return the median, the 99th percentile and the longest of each, in ms."""
        self._ended.set()
        times = [sorted(found.get()) for found in self._found]
        for process in self._processes:
            process.join()
        return [
            (1e3 * of[len(of) // 2], 1e3 * of[int(0.99 * len(of))], 1e3 * of[-1]) for of in times
        ]


def wait_ready(port: int) -> None:
    """Wait until the broker can grant leases."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as wire:
            wire.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if b" 200 " in wire.recv(64):
                return
        time.sleep(0.1)
    raise SystemExit(f"no broker is ready on port {port}")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int, name: str = "VmRSS") -> float:
    """Return the memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def held_ms(turns: Path) -> tuple[float, float]:
    """Return the longest turn, and of a thousand the second longest."""
    found = sorted(json.loads(turns.read_text()), reverse=True)
    return 1e3 * found[0], 1e3 * found[len(found) // 1000]


def measured(name: str, path: str, port: int, broker: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the figures of one kind of reading, all but the turns of the loop."""
    pid = broker.pid
    os.kill(pid, signal.SIGUSR2)
    times, size = [LEAST_S], 0
    before = cpu_s(pid)
    if path:
        get(port, path)
    cpu_ms = 1e3 * (cpu_s(pid) - before)
    meanwhile, began = Meanwhile(port), time.perf_counter()
    if path:
        times = []
        while time.perf_counter() - began < LEAST_S:
            took_s, size = get(port, path)
            times.append(took_s)
    else:
        time.sleep(LEAST_S)
    health, lease = meanwhile.stop()
    ms = 1e3 * sorted(times)[len(times) // 2]
    rss = rss_mb(pid, "VmHWM")
    return {"name": name, "ms": ms, "size": size, "cpu_ms": cpu_ms, "health": health,
            "lease": lease, "rss_mb": rss}  # fmt: skip


def readings(
    devices: int, leases: int, waiters: int, names: Sequence[str], tree: Path
) -> Iterator[Reading]:
    """Yield the figures of each kind of reading, each with a broker of its own."""
    with ExitStack() as stack:
        store = stack.enter_context(bench.running_store())
        pool = bench.Pool(store, devices)
        began = time.monotonic()
        fill(pool, leases)
        print(f"{devices:,} devices, {leases:,} leases filled in {time.monotonic() - began:.0f} s")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name in names:
            enqueue(pool, waiters)
            turns = Path(folder) / "turns"
            with ExitStack() as one:
                port = free_port()
                env = {
                    **os.environ,
                    "PYTHONPATH": str(tree),
                    "REDIS_URL": store.url,
                    "GPU_BROKER_POOL": "bench",
                    "GPU_BROKER_DEVICES": "none",
                    "GPU_BROKER_STATE_DIR": folder,
                    "TURNS": str(turns),
                    "SAFE_MODE": "false",
                    "GPU_ORCHESTRATOR_PORT": str(port),
                }
                command = [sys.executable, "-c", SERVE, "serve"]
                log = one.enter_context((Path(folder) / "broker.log").open("wb"))
                broker = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
                one.callback(broker.wait)
                one.callback(broker.terminate)
                wait_ready(port)
                time.sleep(3)  # for the first sample of the devices
                found = measured(name, ROUTES[name], port, broker)
            yield Reading(held_ms=held_ms(turns), **found)


def table(found: Sequence[Reading]) -> str:
    """Return the report."""
    heads = ["reading", "ms", "bytes", "CPU, ms", "longest turn, of 1000",
             "/health: median, 99 %, longest",
             "/lease: median, 99 %, longest", "rss, MiB"]  # fmt: skip
    rows = [
        [x.name, f"{x.ms:,.0f}", f"{x.size:,}", f"{x.cpu_ms:,.0f}",
         ", ".join(f"{y:.0f}" for y in x.held_ms),
         ", ".join(f"{y:.0f}" for y in x.health), ", ".join(f"{y:.0f}" for y in x.lease),
         f"{x.rss_mb:.0f}"]
        for x in found
    ]  # fmt: skip
    return bench.table(heads, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument("--waiters", type=int, default=0)
    parser.add_argument("--only", action="append", choices=ROUTES, help="may be repeated")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument(
        "--tree", type=Path, default=Path(__file__).parents[2],
        help="the checkout whose broker is measured; fill with its verbs: PYTHONPATH",
    )  # fmt: skip
    args = parser.parse_args(argv)
    names = args.only or list(ROUTES)
    found = []
    for each in readings(args.devices, args.leases, args.waiters, names, args.tree.resolve()):
        found.append(each)
        print(each, file=sys.stderr, flush=True)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps([asdict(x) for x in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
