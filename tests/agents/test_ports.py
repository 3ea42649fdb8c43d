"""The address where an agent listens without a setting."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.agents.processes import FOLDER
from tests.api.brokers import environment, eventually
from tests.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def scout(tmp_path: Path) -> list[str]:
    """The command of a scout in a checkout whose deploy/ports.env a test writes."""
    folder = tmp_path / "scripts" / "agents"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "deploy").mkdir()
    return [sys.executable, str(folder / "scout.py")]


def test_port_is_the_one_of_the_ports_file(tmp_path: Path, scout: list[str]) -> None:
    """Comments and empty lines are none."""
    port = free_port()
    text = f"# name=port\n\nanalyst=1\nscout={port}\n"
    (tmp_path / "deploy" / "ports.env").write_text(text)
    with subprocess.Popen(scout, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == f"scout on http://127.0.0.1:{port}\n"
        assert httpx2.get(f"http://127.0.0.1:{port}/health").json()["agent"] == "scout"
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("text", [None, "analyst=8004\n", "scout=\n"])
def test_port_that_nobody_names_stops_the_start(
    tmp_path: Path, scout: list[str], text: str | None
) -> None:
    """Exit 2, and the message says where it was looked for."""
    if text is not None:
        (tmp_path / "deploy" / "ports.env").write_text(text)
    done = subprocess.run(scout, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "deploy/ports.env has no port for it" in done.stderr


def test_port_that_is_taken_stops_the_start(scout: list[str]) -> None:
    """Exit 2, with the port."""
    command = [*scout, "--port", "0"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        port = eventually(first.stdout.readline, 10).strip().rpartition(":")[2]
        command = [*scout, "--port", port]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert f"port {port} on 127.0.0.1 cannot be had" in done.stderr
        first.terminate()
