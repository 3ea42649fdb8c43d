"""Requests per second over HTTP, beside a bare FastAPI route that runs the same script.

Both are uvicorn processes on one Redis; ours has keys, metrics, logs, deadlines and everything else
that it has in production. A load generator keeps some connections busy with pairs of /lease and
/release; rounds of the two alternate, and figures are medians over rounds. The generator and the
store take a part of the machine too, so the server's own processor time is told beside.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import IO

import uvloop

from agent_sdk.store.embedded import EmbeddedStore
from broker.api_keys import add

CONNECTIONS = 16

LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)

TOKEN = re.compile(rb'"token":"([^"]+)"')

BARE = """
import os
from fastapi import FastAPI
from pydantic import BaseModel
from agent_sdk import Store
from agent_sdk.request import Caller
from agent_sdk.scripts.library import own_library

app, store, caller = FastAPI(), Store(os.environ["REDIS_URL"]), Caller("h1")
redis, library, base = store.connect_async(), own_library(), "gpu:{default}"

class Lease(BaseModel):
    agent: str
    min_memory_mb: int

class Release(BaseModel):
    token: str

@app.post("/lease")
async def lease(body: Lease):
    request = caller.request(body.agent, memory_mb=body.min_memory_mb, host="any")
    reply = await redis.fcall(library.function("acquire"), 1, base, 1, *request)
    return {"granted": reply[0] == "GRANTED", "token": request.token}

@app.post("/release")
async def release(body: Release):
    reply = await redis.fcall(library.function("release"), 1, base, 1, body.token, 0)
    return {"released": reply[0] == "RELEASED"}
"""


def free_port() -> int:
    """Return a port without a listener now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Client(asyncio.Protocol):
    """One busy connection: a lease, its release, and again, with no library between.

    The generator shares the machine with what it measures, so it does as little as it can.
    """

    def __init__(self, key: str, until: float) -> None:
        head = (
            f"Host: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        )
        self._head = head.encode()
        self._until = until
        self._read = b""
        self._token = b""
        self.done = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP
        """Begin."""
        self._transport = transport
        self._acquire()

    def data_received(self, data: bytes) -> None:
        """Read an answer, which must be 200, and ask the next."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return
        self._read = b""
        self.done += 1
        if not head.startswith(b"HTTP/1.1 200"):
            self.ended.set_exception(SystemExit(f"{head!r} {body!r}"))
        elif not self._token:
            self._token = TOKEN.search(body)[1]  # type: ignore[index] # each lease has one
            self._post(b"/release", b'{"token": "%s"}' % self._token)
        elif b'"released":true' not in body:
            self.ended.set_exception(SystemExit(f"not released: {body!r}"))
        elif time.perf_counter() < self._until:
            self._acquire()
        else:
            self._transport.close()
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail if there was more to ask."""
        if not self.ended.done():
            self.ended.set_exception(SystemExit(f"the server has closed: {exc}"))

    def _acquire(self) -> None:
        self._token = b""
        self._post(b"/lease", b'{"agent": "bench", "min_memory_mb": 1}')

    def _post(self, path: bytes, body: bytes) -> None:
        head = b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" % (path, self._head, len(body))
        self._transport.write(head + body)


async def rate(port: int, key: str, seconds: float) -> tuple[float, int]:
    """Return the requests per second of CONNECTIONS busy connections, and the requests."""
    began = time.perf_counter()
    loop, clients = asyncio.get_running_loop(), []
    for _ in range(CONNECTIONS):
        client = Client(key, began + seconds)
        await loop.create_connection(lambda it=client: it, "127.0.0.1", port)
        clients.append(client)
    await asyncio.gather(*(client.ended for client in clients))
    done = sum(client.done for client in clients)
    return done / (time.perf_counter() - began), done


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its children, in seconds."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    threads = (path for each in pids for path in Path(f"/proc/{each}/task").iterdir())
    return sum(int((path / "schedstat").read_text().split()[0]) for path in threads) / 1e9


def wait_for(port: int) -> None:
    """Wait until a server listens."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nobody listens on {port}")


class Side:
    """One server of the comparison.

    Attributes:
        rates: requests per second of each round.
        costs: microseconds of its processor time for a request, of each round.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], folder: str, log: IO[bytes]
    ) -> None:
        self.port = int(env["GPU_ORCHESTRATOR_PORT"])
        self.process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
        self.rates: list[float] = []
        self.costs: list[float] = []

    def run(self, key: str, seconds: float, *, warm: bool) -> None:
        """Run one round, and note it once all is warm."""
        before = cpu_s(self.process.pid)
        found, done = uvloop.run(rate(self.port, key, seconds))
        if warm:
            self.rates.append(found)
            self.costs.append((cpu_s(self.process.pid) - before) / done * 1e6)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def sides(folder: str, store: str, keys: Path, workers: int, stack: ExitStack) -> dict[str, Side]:
    """Start the servers."""
    (Path(folder) / "bare.py").write_text(BARE)
    serve = [str(Path(sys.executable).parent / "gpu-broker"), "serve"]
    quiet = ["--no-access-log", "--log-level", "warning"]
    bare = [sys.executable, "-m", "uvicorn", "bare:app", *quiet]
    commands = {"bare": bare, "ours": serve}
    if workers > 1:
        more = ["--workers", str(workers)]
        commands |= {f"{name}, {workers} workers": [*commands[name], *more] for name in commands}
    found = {}
    for name, command in commands.items():
        port = str(free_port())
        env = os.environ | {
            "REDIS_URL": store,
            "GPU_BROKER_DEVICES": "sim:4x80000",
            "GPU_BROKER_HOSTNAME": "h1",
            "SAFE_MODE": "false",
            "GPU_BROKER_KEYS_FILE": str(keys),
            "GPU_ORCHESTRATOR_PORT": port,
        }
        at = ["--port", port] if name.startswith("bare") else []
        log = stack.enter_context((Path(folder) / f"{name}.log").open("wb"))
        found[name] = side = Side([*command, *at], env, folder, log)
        stack.callback(side.stop)
        wait_for(side.port)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each round and side")
    parser.add_argument("--workers", type=int, default=1, help="more: also so many of each side")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = EmbeddedStore(Path(folder) / "store")
        store.start_or_join()
        stack.callback(store.leave)
        key = add(Path(folder) / "keys", "bench", "agent")
        found = sides(folder, store.url, Path(folder) / "keys", asked.workers, stack)
        time.sleep(1)  # for the first report
        for number in range(asked.rounds + 1):
            for name in sorted(found, reverse=bool(number % 2)):
                found[name].run(key, asked.seconds, warm=number > 0)
        report(found, asked.rounds)


def report(found: dict[str, Side], rounds: int) -> None:
    """Print the medians, and those of the rounds' ratios."""
    print(f"{CONNECTIONS} connections, {rounds} rounds, medians")
    for name, side in found.items():
        rate, cost = median(side.rates), median(side.costs)
        print(f"  {name:16}  {rate:6.0f} requests/s  {cost:5.0f} µs of its processor for each")
    for name, side in found.items():
        if name.startswith("ours"):
            bare = found["bare" + name.removeprefix("ours")]
            print(f"  {name} / bare: {ratio(side.rates, bare.rates)}")
            print(f"  {name} / bare, by processor time: {ratio(bare.costs, side.costs)}")


def ratio(ours: list[float], bare: list[float]) -> str:
    """Return the median of the rounds' ratios, and their range."""
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    return f"{median(ratios):.2f}   (rounds {min(ratios):.2f}-{max(ratios):.2f})"


if __name__ == "__main__":
    main()
