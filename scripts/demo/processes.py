"""Processes of a demonstration: started on free ports, ended by their pids whatever happens."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from demo.web import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]

SIMULATED = "sim:1x24576"
"""The device of a demonstration, unless the environment names others."""

STOP_S = 15.0


def free_port() -> int:
    """Return a port of this machine without a listener now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def process(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a process for the length of a block; SIGTERM at its end, then SIGKILL."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we end it in good order
        )
    try:
        yield started
    finally:
        stop(started)


def stop(started: subprocess.Popen) -> None:
    """SIGTERM, and SIGKILL if that is not heard."""
    started.terminate()
    try:
        started.wait(STOP_S)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


@contextmanager
def orchestrator(*, safe_mode: bool) -> Iterator[str]:
    """Run a broker with a store of its own; yield its URL once it is ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    folder = Path(tempfile.mkdtemp(prefix="gpu-demo-"))
    env = {
        "GPU_ORCHESTRATOR_PORT": str(port),
        "GPU_ORCHESTRATOR_HOST": "127.0.0.1",
        "GPU_BROKER_STATE_DIR": str(folder),
        "GPU_BROKER_DEVICES": os.environ.get("GPU_BROKER_DEVICES", SIMULATED),
        "SAFE_MODE": str(safe_mode).lower(),
        "REDIS_URL": "",
    }
    program = str(Path(sys.executable).parent / "gpu-broker")
    log = folder / "log"
    try:
        with process([program, "serve"], env, log):
            try:
                wait_for(f"{url}/ready")
            except Exception:
                sys.stderr.write(log.read_text())
                raise
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def analyst(orchestrator_url: str) -> Iterator[str]:
    """Run an Analyst of that orchestrator; yield its URL once it is ready."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    folder = Path(tempfile.mkdtemp(prefix="gpu-demo-"))
    command = [sys.executable, str(ROOT / "scripts/agents/analyst.py"), "--port", str(port)]
    try:
        with process(command, {"GPU_ORCHESTRATOR_URL": orchestrator_url}, folder / "log"):
            wait_for(f"{url}/ready")
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)
