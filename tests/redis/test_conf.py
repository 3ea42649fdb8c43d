"""deploy/redis/redis.conf: both servers start with it, and it says what it should."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from tests.servers import binary

if TYPE_CHECKING:
    from collections.abc import Iterator

CONF = Path(__file__).parents[2] / "deploy" / "redis" / "redis.conf"


@pytest.fixture(params=["redis", "valkey"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[redis.Redis]:
    """Return a client of a server that was started with the file, on a socket of its own."""
    command = [str(binary(request.param)), str(CONF), "--port", "0", "--unixsocket", "s",
               "--dir", str(tmp_path), "--logfile", "log"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path) as process:
        client = redis.Redis(unix_socket_path=str(tmp_path / "s"), decode_responses=True)
        try:
            for _ in range(200):
                if process.poll() is not None:
                    pytest.fail((tmp_path / "log").read_text())
                try:
                    client.ping()
                    break
                except redis.exceptions.RedisError:
                    time.sleep(0.02)
            yield client
        finally:
            client.close()
            process.terminate()


def test_nothing_is_thrown_away_and_a_crash_costs_a_second(client: redis.Redis) -> None:
    """The file has the broker's settings of a store, and those that keep what it holds."""
    said = client.config_get("*")
    assert said["maxmemory-policy"] == "noeviction"
    assert (said["appendonly"], said["appendfsync"]) == ("yes", "everysec")
    assert int(said["maxmemory"]) == 64 * 1024 * 1024
    assert said["protected-mode"] == "yes"
    assert int(said.get("busy-reply-threshold", said.get("lua-time-limit"))) == 2000
