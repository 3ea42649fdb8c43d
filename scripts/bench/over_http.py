"""Requests per second over HTTP, beside a bare FastAPI route that runs the same script.

Both are uvicorn processes on one Redis; ours has keys, metrics, logs, deadlines and everything else
that it has in production. A load generator keeps some connections busy with pairs of /lease and
/release; rounds of the two alternate, and figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from agent_sdk.store.embedded import EmbeddedStore
from broker.api_keys import add

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CONNECTIONS = 16

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


class Client:
    """One connection, kept: a request is written and its answer read, with no library between."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._head = (
            f"Host: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json"
        )

    async def connect(self) -> None:
        """Open it."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer, which must be 200."""
        data = json.dumps(body)
        head = f"POST {path} HTTP/1.1\r\n{self._head}\r\nContent-Length: {len(data)}\r\n\r\n"
        self._writer.write((head + data).encode())
        answer = await self._reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{path}: {answer!r}")
        low = answer.lower()
        at = low.index(b"content-length:") + len(b"content-length:")
        length = int(low[at : low.index(b"\r\n", at)])
        found: dict[str, Any] = json.loads(await self._reader.readexactly(length))
        return found

    async def pair(self) -> None:
        """Acquire a lease, and give it back."""
        lease = await self.post("/lease", {"agent": "bench", "min_memory_mb": 1})
        if not (await self.post("/release", {"token": lease["token"]}))["released"]:
            raise SystemExit("not released")

    def close(self) -> None:
        """Close it."""
        self._writer.close()


async def rate(port: int, key: str, seconds: float) -> float:
    """Return the requests per second of CONNECTIONS busy connections."""
    clients = [Client(port, key) for _ in range(CONNECTIONS)]
    for client in clients:
        await client.connect()
    done = 0
    began = time.perf_counter()
    until = began + seconds

    async def work(pair: Callable[[], Awaitable[None]]) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await pair()
            done += 2

    await asyncio.gather(*(work(client.pair) for client in clients))
    took = time.perf_counter() - began
    for client in clients:
        client.close()
    return done / took


def wait_for(port: int) -> None:
    """Wait until a server listens."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nobody listens on {port}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each round and side")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = EmbeddedStore(Path(folder) / "store")
        store.start_or_join()
        stack.callback(store.leave)
        key = add(Path(folder) / "keys", "bench", "agent")
        ports = {"bare": free_port(), "ours": free_port()}
        (Path(folder) / "bare.py").write_text(BARE)
        env = {
            **os.environ,
            "REDIS_URL": store.url,
            "GPU_BROKER_DEVICES": "sim:4x80000",
            "GPU_BROKER_HOSTNAME": "h1",
            "SAFE_MODE": "false",
            "GPU_BROKER_KEYS_FILE": str(Path(folder) / "keys"),
            "GPU_ORCHESTRATOR_PORT": str(ports["ours"]),
        }
        bare = ["-m", "uvicorn", "bare:app", "--port", str(ports["bare"]), "--no-access-log"]
        commands = {
            "ours": [str(Path(sys.executable).parent / "gpu-broker"), "serve"],
            "bare": [sys.executable, *bare, "--log-level", "warning"],
        }
        for name, command in commands.items():
            log = stack.enter_context((Path(folder) / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            wait_for(ports[name])
        time.sleep(1)  # for the first report
        rounds: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(asked.rounds + 1):
            for name in sorted(ports, reverse=bool(number % 2)):
                found = asyncio.run(rate(ports[name], key, asked.seconds))
                if number:  # the first warms up
                    rounds[name].append(found)
        ratios = [a / b for a, b in zip(rounds["ours"], rounds["bare"], strict=True)]
        print(f"{CONNECTIONS} connections, {asked.rounds} rounds, requests per second, medians")
        for name, figures in rounds.items():
            print(f"  {name}  {median(figures):7.0f}")
        print(f"  ours / bare  {median(ratios):.2f}   (rounds {min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
