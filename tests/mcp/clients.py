"""Clients of the MCP server: the SDK's own, over both transports and in both protocols."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from agent_sdk import LeaseClient, Store
from broker.mcp.stdio import session_server
from broker.mcp_terms import Terms
from tests.api.brokers import PROGRAM, environment, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from agent_sdk.testing import TestBroker

MODES = ("legacy", "2026-07-28")


def settings(pool: TestBroker) -> dict[str, str]:
    return environment(REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)


@asynccontextmanager
async def in_process(
    pool: TestBroker, mode: str = "2026-07-28", terms: Terms | None = None, **more: Any
) -> AsyncIterator[Client]:
    """A client of a server as stdio has it, without the processes."""
    with pool.environment():
        server, ended = session_server(terms or Terms(), "tester")
    async with Client(server, mode=mode, **more) as client:
        yield client
    assert ended.is_set()


@asynccontextmanager
async def over_stdio(
    pool: TestBroker, *args: str, mode: str = "2026-07-28", **more: Any
) -> AsyncIterator[Client]:
    server = StdioServerParameters(command=PROGRAM, args=["mcp", *args], env=settings(pool))
    async with Client(stdio_client(server), mode=mode, **more) as client:
        yield client


@asynccontextmanager
async def over_http(
    port: int, key: str | None = None, mode: str = "2026-07-28", **more: Any
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
        async with Client(transport, mode=mode, **more) as client:
            yield client


async def said(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured result of a call that is no refusal."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.structured_content
    assert result.structured_content is not None
    return dict(result.structured_content)


async def refused(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured refusal of a call."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    assert result.structured_content is not None
    return dict(result.structured_content)


async def until(what: Callable[[], Awaitable[object]], within_s: float = 20) -> None:
    """Wait until a coroutine function returns something true."""
    async with asyncio.timeout(within_s):
        while not await what():  # noqa: ASYNC110 - what it waits for is in other processes
            await asyncio.sleep(0.05)


async def until_seen(what: Callable[[], object], within_s: float = 20) -> None:
    """Wait until a blocking function returns something true."""
    await asyncio.to_thread(eventually, what, within_s)


@contextmanager
def pool_of(url: str, name: str = "default", host: str = "h1") -> Iterator[LeaseClient]:
    with LeaseClient(Store(url), pool=name, hostname=host) as client:
        yield client


def client_process(at: str, key: str, *states: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """A process with clients of its own; see `lone_client`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.mcp.lone_client", at, key, *states],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def until_printed(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, f"it ended with {process.wait(10)}"
    return line
