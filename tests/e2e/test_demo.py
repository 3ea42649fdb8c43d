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

from tests.api.brokers import GRANTING, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


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
    """Remove the folder, and return whether it is gone; a dying server may still write in it."""
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def things_to_try(banner: str) -> list[str]:
    """Return the banner's commands, as a person pastes them: from a number to an empty line."""
    found = re.split(r"^ +\d\. ", banner.partition("Try")[2], flags=re.MULTILINE)[1:]
    return [thing.partition("\n\n")[0].strip() for thing in found]


def paste(command: str, *, said_too: bool = False, **settings: str) -> str:
    """Run a command line in another terminal; what it printed. `said_too`: it may use stderr."""
    answer = subprocess.run(
        ["bash", "-c", command],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert said_too or not answer.stderr, command
    return answer.stdout


def test_run_demo_from_scratch(home: Path) -> None:
    """The banner says what is simulated, and each of the things that it numbers works."""
    with Broker("--demo", HOME=str(home)) as broker:
        broker.wait()
        banner = broker.said()
        assert f"http://localhost:{broker.port}" in banner
        assert "SIMULATED" in banner
        assert f"{home}/.local/state/gpu-broker/redis.sock" in banner
        info, run, lease, status, release = things_to_try(banner)
        gpus = json.loads(paste(info, HOME=str(home)))
        assert gpus["available"] is True
        assert all("Simulated" in gpu["name"] for gpu in gpus["gpus"])
        assert run.startswith("gpu-broker run --memory 8GiB -- ")
        assert "on SIM-" in paste(run.replace("sleep 5", "true"), said_too=True, HOME=str(home))
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
        given_back = paste(release.replace("TOKEN", granted["token"]), HOME=str(home))
        assert json.loads(given_back)["released"] is True
        assert broker.stop() == 0, broker.said()
        assert "Traceback" not in broker.said()


def test_banner_says_that_a_demo_does_not_use_redis_url(home: Path) -> None:
    """The commands that it names find the demo's store all the same."""
    redis_url = "redis://:secret@127.0.0.1:1/0"
    with Broker("--demo", HOME=str(home), REDIS_URL=redis_url) as broker:
        broker.wait()
        assert "--demo does not use REDIS_URL" in broker.said()
        status = things_to_try(broker.said())[3]
        assert "Simulated" in paste(status, HOME=str(home), REDIS_URL=redis_url)


def test_banner_names_the_server_that_is_used(server: Server) -> None:
    """By its URL, as the setting has it."""
    with Broker(REDIS_URL=server.url, **GRANTING) as broker:
        broker.wait()
        assert f"{server.url} (REDIS_URL), pool default" in broker.said()


def test_no_banner_of_a_start_that_fails(home: Path) -> None:
    """A store that cannot be started is said alone, and nothing of a URL that answers nobody."""
    folder = home / ("d" * 120)
    with Broker("--demo", HOME=str(home), GPU_BROKER_STATE_DIR=str(folder)) as broker:
        assert broker.process.wait(30) == 69
        assert "GPU_BROKER_STATE_DIR to a shorter folder" in broker.said()
        assert "gpu-broker on" not in broker.said()
