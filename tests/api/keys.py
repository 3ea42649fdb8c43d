"""API keys for tests, made by the program itself."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.api.brokers import PROGRAM, environment

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "hunter2-of-redis"
"""The password of a locked server."""


def new_key(file: Path, name: str, role: str, *more: str) -> str:
    done = subprocess.run(
        [PROGRAM, "keys", "new", name, "--role", role, "--file", file, *more],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() not in done.stderr
    return done.stdout.strip()
