"""Shells of a test, whose programs find its pool."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.program import called
from tests.unit.cli_runs import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from agent_sdk.testing import TestBroker

TELL = 'echo "$? $GPU_LEASE_TOKEN"; read -r _'
"""Print the result and the token, and live on until stdin says something."""


def on(pool: TestBroker, *words: str) -> CompletedProcess[str]:
    """Return one call in this process."""
    return called(*words, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)


@contextmanager
def shell(pool: TestBroker, script: str, program: str = "sh") -> Iterator[subprocess.Popen[str]]:
    """Run a shell, and end it by SIGKILL."""
    with subprocess.Popen(
        [program, "-c", script],
        env=settings(pool),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line of a process, without its end."""
    assert process.stdout
    return process.stdout.readline().strip()
