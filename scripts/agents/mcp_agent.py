"""An agent without a model that leases over MCP: what a model would do, by plain calls.

Over stdio and over HTTP: it looks, leases, runs a program on the GPU, queues for more, and goes on
with its ticket. Then a second agent of higher priority comes: the first is told that its lease is
taken back, saves its state, gives the GPU up before its time, waits behind, asks the other for it,
and goes on from its state. Writes what it saw as JSON; exit code 0 if all of it worked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

PASSED_ON = ("GPU_BROKER_STATE_DIR", "GPU_BROKER_HOSTNAME", "REDIS_URL", "PATH")
"""Variables of the server over stdio: a host passes few of its own on."""

TRIES, PAUSE_S = 100, 0.3
"""Most looks for a notice, and seconds between them."""

PROGRAM = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


class NotSoError(RuntimeError):
    """Error of a step that went otherwise."""


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool, and return its structured result.

    Raises:
        NotSoError: it was refused.
    """
    result = await client.call_tool(tool, arguments)
    said: dict[str, Any] = result.structured_content or {}
    if result.is_error:
        raise NotSoError(f"{tool}: {said.get('code')}: {said.get('says')}")
    return said


async def work(connection: AbstractAsyncContextManager[Client]) -> dict[str, Any]:
    """Do the agent's work over one connection, and return what was seen."""
    async with connection as client:
        device = next(x for x in (await call(client, "gpu_status"))["devices"] if x["free_mb"])
        most = {"memory_mb": device["free_mb"], "host": device["host"]}
        held = await call(client, "gpu_acquire", **most)
        env = os.environ | held["lease"]["env"]
        program = [sys.executable, "-c", PROGRAM]
        ran = await asyncio.to_thread(subprocess.check_output, program, env=env, text=True)
        outlook = await call(client, "gpu_explain", **most)
        queued = await call(client, "gpu_acquire", **most, wait_s=0.1)
        await call(client, "gpu_release", token=held["ticket"])
        got = queued
        for _ in range(5):
            if got["state"] == "active":
                break
            got = await call(client, "gpu_acquire", ticket=queued["ticket"])
        await call(client, "gpu_release", token=queued["ticket"])
        return {
            "protocol": client.protocol_version,
            "ran_on": ran.strip(),
            "leased": [gpu["uuid"] for gpu in held["lease"]["gpus"]],
            "outlook": outlook["code"],
            "queued": queued["state"],
            "then": got["state"],
            "left": (await call(client, "gpu_leases"))["leases"],
        }


async def granted(client: Client, ticket: str) -> dict[str, Any]:
    """Ask with a ticket until its lease is granted.

    Raises:
        NotSoError: it waits for too long.
    """
    for _ in range(TRIES):
        got = await call(client, "gpu_acquire", ticket=ticket, wait_s=1)
        if got["state"] == "active":
            return got
    raise NotSoError("the ticket waits for too long")


async def told(client: Client, ticket: str, kind: str) -> str:
    """Work until a notice of that kind comes with a result, and return its words.

    Raises:
        NotSoError: it does not come.
    """
    for _ in range(TRIES):
        for notice in (await call(client, "gpu_acquire", ticket=ticket))["notices"]:
            if notice["kind"] == kind:
                return str(notice["says"])
        await asyncio.sleep(PAUSE_S)
    raise NotSoError(f"no notice {kind} came")


def ask_for(lease: str, waiter: str) -> int:
    """Ask the holder of a lease for it, as a person at a shell would; return the exit code."""
    program = str(Path(sys.executable).with_name("gpu-broker"))
    return subprocess.run([program, "ask", lease, "--for", waiter], check=False).returncode


async def share(first: AbstractAsyncContextManager[Client], second: Any) -> dict[str, Any]:
    """Lose a lease to an agent of higher priority, and get one again by asking."""
    async with first as client, second as other:
        device = next(x for x in (await call(client, "gpu_status"))["devices"] if x["free_mb"])
        most = {"memory_mb": device["free_mb"], "host": device["host"]}
        held = await call(client, "gpu_acquire", **most, preemptible=True)
        state = {"steps": 7}
        urgent = await call(other, "gpu_acquire", **most, priority=5, yields=True, wait_s=0.1)
        says = await told(client, held["ticket"], "preempt")
        saved = json.dumps(state)
        behind = await call(client, "gpu_acquire", **most, wait_s=0.1)
        released = await call(client, "gpu_release", token=held["ticket"])
        theirs = await granted(other, urgent["ticket"])
        asked = await asyncio.to_thread(ask_for, theirs["ticket"], behind["ticket"])
        wanted = await told(other, theirs["ticket"], "wanted")
        await call(other, "gpu_release", token=theirs["ticket"])
        again = await granted(client, behind["ticket"])
        goes_on = json.loads(saved)["steps"] + 1
        await call(client, "gpu_release", token=again["ticket"])
        return {
            "preempt": says,
            "released_in_time": released["released"],
            "behind": behind["state"],
            "asked": asked,
            "wanted": wanted,
            "again": again["state"],
            "saved_at": state["steps"],
            "goes_on_at": goes_on,
        }


async def main() -> int:
    """Work over both transports, and write what was seen; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the broker's, as http://localhost:8014")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    env = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    server = StdioServerParameters(
        command=str(Path(sys.executable).with_name("gpu-broker")),
        args=["mcp", "--ttl", "3"],
        env=env,
    )

    def connect(way: str) -> Client:
        return Client(stdio_client(server) if way == "stdio" else f"{asked.url}/mcp")

    seen: dict[str, Any] = {}
    for way in ("stdio", "http"):
        try:
            seen[way] = await work(connect(way))
            seen[way] |= await share(connect(way), connect(way))
        except (NotSoError, StopIteration) as error:
            seen[way] = {"problem": str(error)}
        print(f"{way}: {json.dumps(seen[way])}", file=sys.stderr)
    asked.output.write_text(json.dumps(seen, indent=2))
    return 1 if any("problem" in each for each in seen.values()) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
