"""A driver whose library ends whoever loads it: SAFE_MODE must keep every command away from it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import BIN, PROGRAM, Broker, environment, eventually
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

KILLED = 99
"""The exit code of a process that has loaded the library."""

LIBRARY = """
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
  FILE *mark = fopen("%s", "a");
  fputs("library\\n", mark);
  fclose(mark);
  _exit(99);
}
"""

SAFE = {
    "auto": {"GPU_BROKER_DEVICES": "auto", "SAFE_MODE": "true"},
    "nvml": {"GPU_BROKER_DEVICES": "nvml", "SAFE_MODE": "true"},
    "smi": {"GPU_BROKER_DEVICES": "smi", "SAFE_MODE": "true"},
    "nvml, the pool's policy": {"GPU_BROKER_DEVICES": "nvml"},
    "smi, the pool's policy": {"GPU_BROKER_DEVICES": "smi"},
}
"""Settings under which no driver may be touched; a new pool on a named server is safe."""

COMMANDS = {
    "status": (["status"], 0),
    "doctor": (["doctor"], 0),
    "run": (["run", "--memory", "1GiB", "--wait", "0", "--", "true"], 77),
}
"""Arguments, and the exit code under SAFE_MODE."""


@dataclass(frozen=True)
class Trap:
    """A folder with a library and a program that leave a mark, and the settings that lead there."""

    folder: Path
    mark: Path

    @property
    def settings(self) -> dict[str, str]:
        return {
            "ENABLE_NVML": "true",
            "LD_LIBRARY_PATH": str(self.folder),
            "PATH": f"{self.folder}:{BIN}:/usr/bin:/bin",
            "GPU_BROKER_HOSTNAME": "h1",
            "GPU_BROKER_REPORT_S": "0.3",
        }

    def touched(self) -> str:
        """Return the names of the traps that closed."""
        return self.mark.read_text() if self.mark.exists() else ""


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A trap of this test's own."""
    assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
    mark = tmp_path / "mark"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho nvidia-smi >> {mark}\n")
    program.chmod(0o755)
    source = tmp_path / "driver.c"
    source.write_text(LIBRARY % mark)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return Trap(tmp_path, mark)


@pytest.fixture
def agent(server: Server) -> Iterator[LeaseClient]:
    """An agent in a pool of its own."""
    pool = f"trap-{uuid4().hex[:8]}"
    with LeaseClient(Store(server.url), pool=pool, hostname="h1") as agent:
        yield agent


def started(agent: LeaseClient, settings: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """A command of ours on the agent's pool."""
    pool = {"REDIS_URL": agent.store.url, "GPU_BROKER_POOL": agent.keys.pool_name}
    return subprocess.Popen(
        [PROGRAM, *words], env=environment(**pool | settings), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def reports(agent: LeaseClient, hosts: int, times: int) -> None:
    """Wait until so many hosts have each reported so often."""
    eventually(lambda: len(agent.hosts()) == hosts, 15)
    for _ in range(times):
        before = {host.host: host.reported_ms for host in agent.hosts()}
        eventually(lambda b=before: all(x.reported_ms > b[x.host] for x in agent.hosts()), 15)


@pytest.mark.parametrize("name", SAFE)
def test_under_safe_mode_no_command_touches_a_driver_that_kills(
    agent: LeaseClient, trap: Trap, name: str
) -> None:
    """serve and host report and live; status, doctor and run end as they should; no mark."""
    settings = trap.settings | SAFE[name]
    pool = {"REDIS_URL": agent.store.url, "GPU_BROKER_POOL": agent.keys.pool_name}
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(**pool | settings))
        host = started(agent, settings | {"GPU_BROKER_HOSTNAME": "h2"}, "host")
        stack.callback(host.communicate)
        stack.callback(host.kill)
        broker.wait()
        reports(agent, hosts=2, times=3)
        running = {what: started(agent, settings, *words) for what, (words, _) in COMMANDS.items()}
        for what, process in running.items():
            said, _ = process.communicate(timeout=30)
            assert process.returncode == COMMANDS[what][1], said
        host.send_signal(signal.SIGTERM)
        assert host.wait(10) == 0
        assert broker.stop() == 0
    assert trap.touched() == ""


@pytest.mark.parametrize("command", ["serve", "host"])
def test_without_safe_mode_the_same_library_kills_who_asks_nvml(
    agent: LeaseClient, trap: Trap, command: str
) -> None:
    """The trap closes: the test above can fail."""
    settings = trap.settings | {"GPU_BROKER_DEVICES": "nvml", "SAFE_MODE": "false"}
    port = {"GPU_ORCHESTRATOR_PORT": str(free_port())}
    process = started(agent, settings | port, command)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == KILLED, said
    assert trap.touched() == "library\n"


@pytest.mark.parametrize("command", ["serve", "host"])
def test_without_safe_mode_the_same_program_is_run_by_who_asks_it(
    agent: LeaseClient, trap: Trap, command: str
) -> None:
    """The trap of the program closes, too."""
    settings = trap.settings | {"GPU_BROKER_DEVICES": "smi", "SAFE_MODE": "false"}
    port = {"GPU_ORCHESTRATOR_PORT": str(free_port())}
    process = started(agent, settings | port, command)
    try:
        assert eventually(trap.touched, 15).startswith("nvidia-smi")
    finally:
        process.kill()
        process.communicate()


def test_pool_that_becomes_safe_ends_every_touch_at_once(agent: LeaseClient, trap: Trap) -> None:
    """SAFE_MODE of the pool's policy: after one more report nothing is run any more."""
    settings = trap.settings | {"GPU_BROKER_DEVICES": "smi"}
    process = started(agent, settings, "host")
    try:
        reports(agent, hosts=1, times=2)
        assert trap.touched() == ""
        agent.set_policy(safe_mode=False)
        eventually(trap.touched, 10)
        agent.set_policy(safe_mode=True)
        reports(agent, hosts=1, times=2)
        trap.mark.unlink()
        reports(agent, hosts=1, times=3)
        assert trap.touched() == ""
    finally:
        process.kill()
        process.communicate()
