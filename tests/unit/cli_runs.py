"""Calls of `gpu-broker run` on a test's pool."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.api.brokers import PROGRAM, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker


def settings(pool: TestBroker) -> dict[str, str]:
    return environment(REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)


def run(pool: TestBroker, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """One call that ends by itself."""
    return subprocess.run(
        [PROGRAM, "run", *args],
        env=settings(pool) | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def running(pool: TestBroker, *args: str) -> Iterator[subprocess.Popen[str]]:
    """One call that a test ends; its first line of stdout tells that the command runs."""
    process = subprocess.Popen(
        [PROGRAM, "run", *args],
        env=settings(pool),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def events(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def alive(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
