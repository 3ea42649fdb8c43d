"""An agent without a model that leases over MCP: what a model would do, by plain calls.

Over stdio and over HTTP: it looks, leases, runs a program on the GPU, queues for more, and goes on
with its ticket. Writes what it saw as JSON; exit code 0 if all of it worked.
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


async def main() -> int:
    """Work over both transports, and write what was seen; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the broker's, as http://localhost:8014")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    env = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    server = StdioServerParameters(
        command=str(Path(sys.executable).with_name("gpu-broker")), args=["mcp"], env=env
    )
    ways = {"stdio": Client(stdio_client(server)), "http": Client(f"{asked.url}/mcp")}
    seen: dict[str, Any] = {}
    for way, connection in ways.items():
        try:
            seen[way] = await work(connection)
        except (NotSoError, StopIteration) as error:
            seen[way] = {"problem": str(error)}
        print(f"{way}: {json.dumps(seen[way])}", file=sys.stderr)
    asked.output.write_text(json.dumps(seen, indent=2))
    return 1 if any("problem" in each for each in seen.values()) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
