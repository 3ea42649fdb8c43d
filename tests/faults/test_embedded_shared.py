"""The embedded store under real brokers that come, die and go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import PROGRAM, SIM, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder() -> Iterator[Path]:
    """A state folder with a short name; a server that is left in it is killed by its pid."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="gb-"))
    yield path
    if pid := server_of(path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: server_of(path) is None, 5)
    shutil.rmtree(path)


def server_of(folder: Path) -> int | None:
    """The pid of the store's server, if it runs."""
    with suppress(OSError, ValueError):
        pid = int((folder / "redis.pid").read_text())
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        return pid if os.fsencode(folder) in title else None
    return None


def status(folder: Path) -> subprocess.CompletedProcess[str]:
    """`gpu-broker status -o json` with REDIS_URL unset."""
    return subprocess.run(
        [PROGRAM, "status", "-o", "json"],
        env=environment(GPU_BROKER_STATE_DIR=str(folder)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def status_json(folder: Path) -> Any:
    """The same, which must succeed, parsed."""
    answer = status(folder)
    assert (answer.returncode, answer.stderr) == (0, "")
    return json.loads(answer.stdout)


def test_serve_twice_on_one_state_folder_shares_the_store_until_the_last_stops(
    folder: Path,
) -> None:
    """Two brokers share one server, which a SIGKILL of the first leaves and the last stop ends."""
    here = {"GPU_BROKER_STATE_DIR": str(folder)}
    with (
        Broker(**SIM | here) as first,
        Broker(**SIM | here | {"GPU_BROKER_HOSTNAME": "h2"}) as second,
    ):
        first.wait()
        second.wait()
        pid = server_of(folder)
        assert pid is not None
        eventually(lambda: len(second.http.get("/gpu/info").json()["gpus"]) == 2, 5)
        lease = first.granted(min_memory_mb=900)
        assert list(second.allocations()) == [lease["token"]]
        seen = status_json(folder)
        assert [device["host"] for device in seen["devices"]] == ["h1", "h2"]
        assert [row["token"] for row in seen["leases"]] == [lease["token"]]
        first.kill()
        assert second.http.get("/ready").status_code == 200
        assert list(second.allocations()) == [lease["token"]]
        assert second.release(lease["token"]).status_code == 200
        assert server_of(folder) == pid
        assert second.stop() == 0, second.said()
        assert "Traceback" not in second.said()
        assert server_of(folder) is None
        assert not (folder / "redis.sock").exists()


def test_status_without_a_store_exits_69_and_says_how_to_start_one(folder: Path) -> None:
    """With nothing there the command says so in plain words, with the next step."""
    away = status(folder)
    assert (away.returncode, away.stdout) == (69, "")
    assert "gpu-broker serve" in away.stderr
    assert "Traceback" not in away.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_stopped_cleanly_and_started_again_still_has_the_lease(
    folder: Path, how: signal.Signals
) -> None:
    """The last clean stop, by either signal, ends the server; the next start finds the leases."""
    here = {"GPU_BROKER_STATE_DIR": str(folder)}
    with Broker(**SIM | here) as first:
        lease = first.wait().granted(min_memory_mb=900)
        first.process.send_signal(how)
        first.process.wait(15)
        assert "Traceback" not in first.said()
        assert server_of(folder) is None
    with Broker(**SIM | here) as again:
        assert list(again.wait().allocations()) == [lease["token"]]
        again.stop()
