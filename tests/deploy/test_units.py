"""The systemd units: well-formed, hardened, and what the broker tells systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import GRANTING, Broker, environment
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy" / "systemd"
INSTANCES = ["gpu_orchestrator", "analyst", "scout", "critic"]

MOST_EXPOSED = 3.0

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed"
)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the distribution's units and ours, and the program that ours start."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    subprocess.run(
        [SYSTEMD / "install.sh"], env=environment(DESTDIR=str(root)), check=True, timeout=30,
        capture_output=True,
    )  # fmt: skip
    program = root / str(SYSTEMD / "justnews-start-agent.sh").lstrip("/")
    program.parent.mkdir(parents=True)
    shutil.copy(SYSTEMD / "justnews-start-agent.sh", program)
    return root


def analyze(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--root", root, *args],
        env=environment(NO_COLOR="1"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@needs_systemd
@pytest.mark.parametrize("instance", INSTANCES)
def test_unit_is_well_formed(staged: Path, instance: str) -> None:
    """systemd says nothing about it: an unknown key would be a line with exit code 0."""
    done = analyze(staged, "verify", "--man=no", f"justnews@{instance}.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("instance", INSTANCES)
def test_unit_is_hardened(staged: Path, instance: str) -> None:
    """Its exposure, as systemd reckons it."""
    done = analyze(staged, "security", "--offline=true", f"justnews@{instance}.service")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MOST_EXPOSED


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + address[1:] if address.startswith("@") else address)
        channel.settimeout(15)
        yield channel


def hear(channel: socket.socket, words: str, within_s: float = 15) -> list[str]:
    """Return the output until these words come."""
    said: list[str] = []
    until = time.monotonic() + within_s
    while not any(words in line for line in said):
        assert time.monotonic() < until, said
        said += channel.recv(4096).decode().splitlines()
    return said


@pytest.mark.parametrize("abstract", [False, True])
def test_broker_tells_systemd_when_it_is_ready_and_that_it_stops(
    tmp_path: Path, abstract: bool
) -> None:
    """READY once its state is known; no watchdog unless it is asked for; STOPPING at the end."""
    address = f"@gpu-broker-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with (
        running() as server,
        listening(address) as channel,
        Broker(**GRANTING, REDIS_URL=server.url, NOTIFY_SOCKET=address) as broker,
    ):
        said = hear(channel, "STATUS=granting leases")
        assert said[0] == "READY=1"
        assert broker.wait().stop() == 0
        said = hear(channel, "STOPPING=1")
        assert "WATCHDOG=1" not in said


def test_watchdog_hears_of_a_broker_whose_redis_is_away(tmp_path: Path) -> None:
    """It is no reason to restart it, and the status says what is wrong; a stopped broker is one."""
    address = str(tmp_path / "notify")
    with (
        running() as server,
        listening(address) as channel,
        Broker(
            **GRANTING, REDIS_URL=server.url, NOTIFY_SOCKET=address, WATCHDOG_USEC="10000000"
        ) as broker,
    ):
        hear(channel, "WATCHDOG=1")
        server.process.send_signal(signal.SIGSTOP)
        hear(channel, "STATUS=no leases: Redis")
        for _ in range(3):
            hear(channel, "WATCHDOG=1", 4)
        server.process.send_signal(signal.SIGCONT)
        hear(channel, "STATUS=granting leases")
        broker.process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        channel.setblocking(False)
        with suppress(BlockingIOError):
            while channel.recv(4096):  # what it said before
                pass
        channel.settimeout(3)
        with pytest.raises(TimeoutError):
            channel.recv(4096)


def test_watchdog_of_another_process_is_left_alone(tmp_path: Path) -> None:
    """WATCHDOG_PID names whom systemd listens to."""
    address = str(tmp_path / "notify")
    settings = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}
    with (
        running() as server,
        listening(address) as channel,
        Broker(**GRANTING, REDIS_URL=server.url, **settings) as broker,
    ):
        hear(channel, "READY=1")
        time.sleep(2.5)
        broker.stop()
        assert "WATCHDOG=1" not in hear(channel, "STOPPING=1")


def test_broker_that_nobody_listens_to_serves_all_the_same(tmp_path: Path) -> None:
    """The socket is gone, or is none."""
    with (
        running() as server,
        Broker(**GRANTING, REDIS_URL=server.url, NOTIFY_SOCKET=str(tmp_path / "gone")) as broker,
    ):
        broker.wait()
