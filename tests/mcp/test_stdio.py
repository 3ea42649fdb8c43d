"""MCP over stdio: real processes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import PROGRAM, eventually
from tests.mcp.clients import (
    MODES,
    client_process,
    over_stdio,
    said,
    settings,
    until_printed,
    until_seen,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp import Client

    from agent_sdk.testing import TestBroker

PIPE = 65_536
"""Bytes that a pipe holds."""

NAP = b"sleep\x003599.25\x00"
"""Command line of the command that `lone_client.running` starts."""


@pytest.mark.parametrize("mode", MODES)
async def test_leases_end_with_the_session(gpus: TestBroker, mode: str) -> None:
    """With several, and a place in the queue; a first call that is cancelled leaves none."""
    async with over_stdio(gpus, mode=mode) as client:
        both = await said(client, "gpu_acquire", memory_mb=1000, gpus=2, confirm=True)
        call = asyncio.ensure_future(said(client, "gpu_acquire", memory_mb=900, wait_s=15))
        await until_seen(gpus.client.queue)
        call.cancel()
        await until_seen(lambda: not gpus.client.queue())
        await said(client, "gpu_release", token=both["ticket"])
        for _ in range(4):
            await said(client, "gpu_acquire", memory_mb=100)
        await said(client, "gpu_acquire", memory_mb=950, wait_s=0.1)
        tokens = {lease.token for lease in gpus.client.leases()}
        assert len(tokens) == 4
        assert gpus.client.queue()
    ends = {x.token: x.event for x in gpus.client.events(50) if x.token in tokens}
    assert ends == dict.fromkeys(tokens, "released")


async def ended(client: Client, run: dict[str, Any]) -> dict[str, Any]:
    """The last result about a command that ends by itself."""
    while run["state"] == "running":
        run = await said(client, "gpu_run", job=run["job"], wait_s=15)
    return run


async def test_command_runs_under_a_lease_of_its_own(gpus: TestBroker, tmp_path: Path) -> None:
    """With its output and its exit code; the end of the session ends it."""
    async with over_stdio(gpus, "--allow-run", "--ttl", "8") as client:
        code = ["sh", "-c", "echo holds $GPU_LEASE_MEMORY_MB; exit 3"]
        (tmp_path / "broker.py").write_text("raise SystemExit('not the broker')")
        ask = {"command": code, "memory_mb": 600, "cwd": str(tmp_path)}
        done = await ended(client, await said(client, "gpu_run", **ask))
        assert (done["state"], done["exit_code"]) == ("ended", 3)
        assert "holds 600" in done["output"]
        long = await said(client, "gpu_run", command=["sleep", "3600"], memory_mb=600, wait_s=0)
        await until_seen(gpus.client.leases)
        assert long["state"] == "running"
        stopped = await said(client, "gpu_run", job=long["job"], stop=True)
        assert (await ended(client, stopped))["exit_code"] == 128 + signal.SIGTERM
        await said(client, "gpu_run", command=["yes"], memory_mb=600, wait_s=0.5)


async def test_command_that_no_answer_names_ends(gpus: TestBroker) -> None:
    """A call that is cancelled ends the command that it began, and no other."""
    async with over_stdio(gpus, "--allow-run", "--ttl", "8") as client:
        ask: dict[str, Any] = {"command": ["sleep", "3599.5"], "memory_mb": 600}
        kept = await said(client, "gpu_run", **ask, wait_s=0)
        await until_seen(gpus.client.leases)
        (first,) = {lease.token for lease in gpus.client.leases()}
        asked = asyncio.ensure_future(
            client.call_tool("gpu_run", {"job": kept["job"], "wait_s": 15})
        )
        await asyncio.sleep(0.5)
        asked.cancel()
        begun = asyncio.ensure_future(client.call_tool("gpu_run", ask | {"wait_s": 15}))
        await until_seen(lambda: len(gpus.client.leases()) == 2)
        begun.cancel()
        await until_seen(lambda: {lease.token for lease in gpus.client.leases()} == {first})
        assert (await said(client, "gpu_run", job=kept["job"], wait_s=0.5))["state"] == "running"


HELLO = {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}
}  # fmt: skip


@pytest.mark.parametrize("closed", [False, True])
def test_signal_ends_a_process_whose_answers_are_not_read(gpus: TestBroker, closed: bool) -> None:
    """The pipe is full; the client has closed its own end, or has not."""
    with subprocess.Popen(
        [PROGRAM, "mcp"], env=settings(gpus), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asks, answers = process.stdin, process.stdout

        def ask(number: int, method: str, **params: Any) -> None:
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            asks.write(f"{json.dumps(request)}\n".encode())
            asks.flush()

        def full() -> bool:
            waiting = bytearray(4)
            fcntl.ioctl(answers, termios.FIONREAD, waiting)
            return int.from_bytes(waiting, sys.byteorder) > PIPE - 4096

        ask(0, "initialize", **HELLO)
        assert b"result" in answers.readline()
        asks.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        for number in range(1, 101):
            ask(number, "tools/list")
        eventually(full, 20)
        if closed:
            asks.close()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)  # the last answers may still be read
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM


STATES = ("idle", "holding", "waiting", "in_a_call", "running")


@contextmanager
def in_states(pool: TestBroker, *states: str) -> Iterator[tuple[int, list[int]]]:
    """A process with clients in these states, as its pid and its servers'; no GPU is ever free."""
    held = [pool.client.acquire("other", memory_mb=50) for _ in range(2)]
    clients = client_process("stdio", "", *states, env=settings(pool))
    try:
        lines = [until_printed(clients) for _ in range(2 * len(states))]
        yield clients.pid, [int(line) for line in lines if line.isdigit()]
    finally:
        clients.kill()
        clients.communicate()
        for lease in held:
            pool.client.release(lease)


def nothing_left(pool: TestBroker, servers: list[int]) -> bool:
    """No process, no lease, no place in the queue."""
    pool.client.reap()  # what a broker does each second
    alive = [pid for pid in servers if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
    held = {lease.agent for lease in pool.client.leases()} - {"other"}
    return not (alive or held or pool.client.queue() or _sleepers())


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _sleepers() -> list[Path]:
    """The commands of `running`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [path] if path.read_bytes() == NAP else []
    return found


@pytest.mark.parametrize("who", ["client", "server"])
def test_killed_process_leaves_nothing(gpus: TestBroker, who: str) -> None:
    """In each state; of a killed server's leases the ttl is the end."""
    states = STATES if who == "client" else STATES[1:]
    with in_states(gpus, *states) as (client, servers):
        eventually(lambda: len(gpus.client.leases()) == 2 + 9, 60)
        eventually(lambda: len(gpus.client.queue()) == 2, 60)
        for pid in [client] if who == "client" else servers:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: nothing_left(gpus, servers), 60)


def test_signal_ends_leases_and_process(gpus: TestBroker) -> None:
    """At once, though its client keeps stdin open."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with in_states(gpus, *["in_a_call"] * len(numbers)) as (_, servers):
        for number, server in zip(numbers, servers, strict=True):
            os.kill(server, number)
        eventually(lambda: nothing_left(gpus, servers), 60)


def test_first_answer_waits_for_few_imports(gpus: TestBroker) -> None:
    """Hosts give up a server that is slow to answer: no part of `serve` is loaded before."""
    env = settings(gpus) | {"PYTHONPROFILEIMPORTTIME": "1"}
    server = subprocess.Popen(
        [PROGRAM, "mcp"], env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    about = {"protocolVersion": "2025-11-25", "capabilities": {},
             "clientInfo": {"name": "t", "version": "0"}}  # fmt: skip
    ask = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
    out, log = server.communicate(json.dumps(ask) + "\n", timeout=60)
    answer = json.loads(out)
    assert answer["result"]["serverInfo"]["name"] == "gpu-broker"
    loaded = {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}
    assert "broker.mcp.server" in loaded
    late = {"fastapi", "structlog", "pydantic_settings", "prometheus_client", "broker.settings",
            "broker.app", "agent_sdk.state.explain", "agent_sdk.state.pool_state"}  # fmt: skip
    assert not loaded & late
