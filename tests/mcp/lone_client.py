"""Clients in a process of its own, which a test kills.

python -m tests.mcp.lone_client stdio|PORT KEY STATE...

Prints the pid of the server for each state, and a line as each is reached.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.api.brokers import PROGRAM
from tests.mcp.clients import over_http, said

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _newest_child() -> str:
    """The pid of the process that we started last; 0: there is none."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return children[-1] if children else "0"


async def idle(client: Client) -> None:
    await said(client, "gpu_status")
    say("idle")


async def holding(client: Client) -> None:
    for _ in range(4):
        await said(client, "gpu_acquire", memory_mb=100)
    say("holding")


async def waiting(client: Client) -> None:
    got = await said(client, "gpu_acquire", memory_mb=1000, wait_s=0.2)
    assert got["state"] == "waiting", got
    say("waiting")


async def in_a_call(client: Client) -> None:
    for _ in range(4):
        await said(client, "gpu_acquire", memory_mb=100)
    asyncio.get_running_loop().call_later(0.5, say, "in_a_call")
    await client.call_tool("gpu_acquire", {"memory_mb": 1000, "wait_s": 15})


async def running(client: Client) -> None:
    command = ["sleep", "3599.25"]
    await said(client, "gpu_run", command=command, memory_mb=100, wait_s=0.5)
    say("running")


STATES: dict[str, Callable[[Client], Awaitable[None]]] = {
    each.__name__: each for each in (idle, holding, waiting, in_a_call, running)
}


def _connected(at: str, key: str) -> AbstractAsyncContextManager[Client]:
    if at != "stdio":
        return over_http(int(at), key)
    env = {name: os.environ[name] for name in ("REDIS_URL", "GPU_BROKER_HOSTNAME", "PATH")}
    args = ["mcp", "--ttl", "8", "--allow-run"]
    return Client(stdio_client(StdioServerParameters(command=PROGRAM, args=args, env=env)))


async def main(at: str, key: str, *states: str) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for state in states:
            client = await stack.enter_async_context(_connected(at, key))
            say(_newest_child())
            tasks.create_task(STATES[state](client))
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
