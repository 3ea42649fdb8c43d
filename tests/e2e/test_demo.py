"""The first five minutes: `gpu-broker serve --demo` on a machine that has never seen it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home() -> Iterator[Path]:
    """The empty home of a new user; a store that is left in it is killed by its pid."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="gb-"))
    yield path
    for pidfile in path.rglob("redis.pid"):
        with suppress(OSError, ValueError):
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
    eventually(lambda: remove(path), 5)


def remove(path: Path) -> bool:
    """Whether the folder is gone; a server that is just dying may still write in it."""
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def things_to_try(banner: str) -> list[str]:
    """What the banner numbers, as a person pastes it: from after the number to two blanks."""
    found = re.split(r"^ +\d\. ", banner.partition("Try")[2], flags=re.MULTILINE)[1:]
    return [re.split(r" {2,}\(", thing)[0].strip() for thing in found]


def paste(command: str, **settings: str) -> str:
    """Run a command line in another terminal; what it printed."""
    answer = subprocess.run(
        ["bash", "-c", command],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, ""), command
    return answer.stdout


def test_run_demo_from_scratch(home: Path) -> None:
    """The banner says what is simulated, and each of the three things that it names works."""
    with Broker("--demo", HOME=str(home)) as broker:
        broker.wait()
        banner = broker.said()
        assert f"http://localhost:{broker.port}" in banner
        assert "SIMULATED" in banner
        assert str(home) in banner
        info, lease, status = things_to_try(banner)
        gpus = json.loads(paste(info, HOME=str(home)))
        assert gpus["available"] is True
        assert all("Simulated" in gpu["name"] for gpu in gpus["gpus"])
        granted = json.loads(paste(lease, HOME=str(home)))
        assert granted["granted"] is True
        assert granted["gpu"] in {0, 1}
        assert status == "gpu-broker status"
        text = paste(status, HOME=str(home))
        assert granted["token"][:8] in text
        assert "Simulated" in text
        seen = json.loads(paste(f"{status} -o json", HOME=str(home)))
        assert [row["token"] for row in seen["leases"]] == [granted["token"]]
        assert len(seen["devices"]) == len(gpus["gpus"])
        assert broker.stop() == 0, broker.said()
        assert "Traceback" not in broker.said()
