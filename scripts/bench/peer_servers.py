"""Servers of the peers: our own, a folder of lock files, a venv; processes in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import bench
import cluster
import rival
from rival import ETCD, FILES, OURS, OURS_ASYNC, OURS_DURABLE, RESLOCK
from rivals import MADE

from agent_sdk import Store
from agent_sdk.keys import Keys
from agent_sdk.scripts import library as functions
from agent_sdk.scripts.library import own_library

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers-requirements.txt"
VENV = Path(sys.prefix) / "peers"

SERVER_CORE, CLIENT_CORE = (bench.CORES[0], bench.CORES[-1]) if bench.CORES else (0, 0)

GPUS = 128
"""Lock files of those who need one each."""


class NotMeasured(Exception):
    """A peer that cannot be installed or started, and why."""


@dataclass(slots=True)
class RedisServer:
    """A server that can be killed and started again where it was."""

    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL where it listens."""
        return f"unix://{self.folder / 's'}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        binary = shutil.which("redis-server")
        if binary is None:
            raise SystemExit("no redis-server on PATH: apt-get install redis-server")
        command = [binary, "--port", "0", "--unixsocket", "s", "--save", "", "--dir",
                   str(self.folder), *self.options]  # fmt: skip
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        pin(self.process.pid, SERVER_CORE)
        bench.wait_ready(Store(self.url, timeout_s=10.0))

    def kill(self) -> None:
        """SIGKILL."""
        if self.process:
            self.process.kill()
            self.process.wait()


def pin(pid: int, core: int) -> None:
    """Keep a process on a core, where there are several."""
    if len(bench.CORES) > 1:
        os.sched_setaffinity(pid, {core})


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as folder:
        server = RedisServer(Path(folder), options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def make_pools(url: str, epochs: dict[str, str] | None = None) -> dict[str, str]:
    """Return a pool of 64 devices and one of a single device, alive for a day; their epochs.

    A reporter remembers the epoch that it last saw, and says so to a pool made anew.
    """
    hosts = {rival.MANY: [f"host-{n}" for n in range(8)], rival.ONE: [rival.HOST]}
    store = Store(url, 30.0)
    with store.connect() as found:
        redis: Any = found
        functions.load_own(redis)
        for pool, names in hosts.items():
            for name in names:
                args = list(bench.report_of(name).args)
                args[4] = (epochs or {}).get(pool, "")
                if pool == rival.ONE:
                    args[7:] = args[7 : 7 + (len(args) - 7) // bench.HOST_DEVICES]
                redis.fcall(own_library().function("report"), 1, Keys(pool).base, *args)
        return {pool: redis.hget(Keys(pool).pool, "epoch") for pool in hosts}


@dataclass(slots=True)
class EtcdServer:
    """An etcd on loopback ports; writes are synced to disk, as it always does."""

    folder: Path
    client: int
    peer: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL where its gateway listens."""
        return f"http://127.0.0.1:{self.client}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        peer = f"http://127.0.0.1:{self.peer}"
        command = [
            "etcd", "--data-dir", str(self.folder / "data"), "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"ETCD_UNSUPPORTED_ARCH": os.uname().machine.replace("aarch", "arm")},
        )  # fmt: skip
        pin(self.process.pid, SERVER_CORE)
        for _ in range(250):
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=1) as said:  # noqa: S310 - ours
                if b"true" in said.read():
                    return
            time.sleep(0.04)
        raise NotMeasured("etcd does not answer")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process:
            self.process.kill()
            self.process.wait()


@contextmanager
def etcd_server() -> Iterator[EtcdServer]:
    """Run an etcd for the length of a block."""
    if shutil.which("etcd") is None:
        raise NotMeasured("no etcd on PATH: apt-get install etcd-server")
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as folder:
        server = EtcdServer(Path(folder), cluster.free_port(), cluster.free_port())
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def lock_folder() -> Iterator[str]:
    """Tables of free GPUs, as a cron job with nvidia-smi would write them."""
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as folder:
        row = f"{{}}, {rival.WHOLE_MB}\n"
        (Path(folder) / "many.csv").write_text("".join(row.format(n) for n in range(GPUS)))
        (Path(folder) / "one.csv").write_text(row.format(0))
        yield folder


def peers_python() -> str:
    """Return the interpreter of the peers' venv, made now if it is not as its requirements say."""
    python, made = VENV / "bin" / "python", VENV / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if made.exists() and made.read_text() == wanted:
        return str(python)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "-r", REQUIREMENTS]  # fmt: skip
    for command in ([sys.executable, "-m", "venv", VENV], install):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise NotMeasured(f"its venv cannot be made: {said[-1] if said else done.returncode}")
    made.write_text(wanted)
    return str(python)


class Process:
    """A worker: jobs in, answers out."""

    def __init__(self, kind: str, where: str) -> None:
        ours = kind in {OURS, OURS_ASYNC, OURS_DURABLE, ETCD, rival.PING, rival.SCRIPT}
        python = sys.executable if ours else peers_python()
        self.kind, self.process = kind, subprocess.Popen(
            [python, HERE / "rival_worker.py", kind, where], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        pin(self.process.pid, CLIENT_CORE)

    def tell(self, job: str, **arguments: Any) -> None:
        """Give it a job."""
        assert self.process.stdin  # noqa: S101 - a pipe was asked for
        self.process.stdin.write(json.dumps({"job": job, "with": arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Return the job's result; NotMeasured with the error that it ended with."""
        assert self.process.stdout  # noqa: S101 - a pipe was asked for
        line = self.process.stdout.readline()
        if not line:
            raise NotMeasured(f"its process ended with {self.process.wait()}")
        said = json.loads(line)
        if "error" in said:
            raise NotMeasured(said["error"])
        return said["result"]

    def ask(self, job: str, **arguments: Any) -> Any:
        """Give it a job and wait for what comes of it."""
        self.tell(job, **arguments)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer would."""
        self.process.send_signal(signal.SIGKILL)
        with suppress(BrokenPipeError):
            self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class World:
    """The places where each kind finds what it needs, or why it cannot be measured."""

    def __init__(self, stack: ExitStack) -> None:
        self.redis = stack.enter_context(redis_server())
        self.durable = stack.enter_context(
            redis_server("--appendonly", "yes", "--appendfsync", "always")
        )
        for server in (self.redis, self.durable):
            make_pools(server.url)
        self.places = dict.fromkeys(MADE, self.redis.url)
        self.places[OURS_DURABLE] = self.durable.url
        for kind in (FILES, RESLOCK):
            self.places[kind] = stack.enter_context(lock_folder())
        self.missing: dict[str, str] = {}
        try:
            self.places[ETCD] = stack.enter_context(etcd_server()).url
        except NotMeasured as why:
            self.missing[ETCD] = str(why)

    def process(self, kind: str) -> Process:
        """Return a process with clients of that kind."""
        if kind in self.missing:
            raise NotMeasured(self.missing[kind])
        return Process(kind, self.places[kind])
