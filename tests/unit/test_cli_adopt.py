"""`gpu-broker adopt`: a process that uses a GPU already comes under a lease."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import PROGRAM, Broker, environment, eventually
from tests.program import called
from tests.servers import running
from tests.unit.cli_runs import alive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

SCENARIO = """
steps:
  - after_s: 0
    devices:
      - {{uuid: GPU-a, total_mb: 10000, used_mb: 7000, utilization_gpu_pct: 50,
         processes: [{{pid: {pid}, memory_mb: 7000, busy_pct: 50}}]}}
      - {{uuid: GPU-b, total_mb: 10000, used_mb: 2000, utilization_gpu_pct: 50,
         processes: [{{pid: {pid}, memory_mb: 2000, busy_pct: 50}}]}}
"""


class World:
    """Host with a process on both of its GPUs, which has no lease."""

    def __init__(self, url: str, pid: int) -> None:
        self.settings = {"REDIS_URL": url, "GPU_BROKER_HOSTNAME": "h1"}
        self.client, self.pid = LeaseClient(Store(url), hostname="h1"), pid

    def adopt(self, *words: str, pid: int | None = None) -> CompletedProcess[str]:
        """Return one call in a process of its own: it forks."""
        return subprocess.run(
            [PROGRAM, "adopt", "--pid", str(pid or self.pid), *words],
            env=environment(**self.settings), capture_output=True, text=True, check=False,
            timeout=30,
        )  # fmt: skip

    def seen(self) -> Any:
        """Return the first GPU."""
        return self.client.devices()[0]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A real broker over a scenario that names a real process."""
    with running("redis") as server, subprocess.Popen(["sleep", "1000"]) as process:
        scenario = tmp_path / "gpus.yaml"
        scenario.write_text(SCENARIO.format(pid=process.pid))
        with Broker(
            REDIS_URL=server.url, GPU_BROKER_DEVICES=f"scenario:{scenario}", SAFE_MODE="false",
            GPU_BROKER_HOSTNAME="h1", GPU_BROKER_REPORT_S="0.3", GPU_BROKER_PROCESSES="host",
        ):  # fmt: skip
            found = World(server.url, process.pid)
            try:
                eventually(lambda: found.client.devices() and found.seen().unleased_mb == 7000, 20)
                yield found
            finally:
                found.client.close()
                process.kill()


def test_adopted_process_is_accounted_to_its_lease_while_it_lives(world: World) -> None:
    """Its memory becomes leased on its own GPU; SIGKILL of it gives the lease back."""
    assert "uses h1:0 h1:1: name one with --gpu" in world.adopt().stderr
    done = world.adopt("--gpu", "h1:0", "--note", "from cron", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [gpu["uuid"] for gpu in told["devices"]] == ["GPU-a"]
    assert "is under lease" in world.adopt("--gpu", "h1:0").stderr, "before it is reported"
    lease: Any = world.client.lookup(told["token"])
    assert (lease.memory_mb, lease.note) == (7000, "from cron")

    def accounted() -> bool:
        seen = world.seen()
        return seen.unleased_mb == 0 and seen.processes[0].token == told["token"]

    eventually(accounted, 20)
    assert world.seen().findings == ()
    other = world.adopt()
    assert (other.returncode, len(other.stdout.split())) == (0, 1), other.stderr
    eventually(lambda: world.client.devices()[1].unleased_mb == 0, 20)
    assert [x.devices for x in world.client.leases()] == [(("GPU-a", 7000),), (("GPU-b", 2000),)]
    assert "is under lease" in world.adopt().stderr
    os.kill(world.pid, signal.SIGKILL)
    eventually(lambda: world.client.lookup(told["token"]) == "released", 20)
    eventually(lambda: not alive(told["keeper_pid"]), 20)


def test_killed_keeper_leaves_the_process_without_a_lease(world: World) -> None:
    """The lease ends by its ttl; the process goes on, and can be adopted again."""
    told = json.loads(world.adopt("--gpu", "h1:0", "--ttl", "1", "-o", "json").stdout)
    os.kill(told["keeper_pid"], signal.SIGKILL)
    eventually(lambda: world.client.lookup(told["token"]) == "expired", 20)
    assert alive(world.pid)
    eventually(lambda: world.adopt("--gpu", "h1:0").returncode == 0, 30, every_s=0.5)


def test_adopt_says_why_it_cannot(world: World) -> None:
    """More than there is, a process that uses no GPU, one that is not there."""
    assert "has 9700 MiB" in world.adopt("--gpu", "h1:0", "--memory", "9900").stderr
    assert f"no GPU of h1 shows process {os.getpid()}" in world.adopt(pid=os.getpid()).stderr
    gone = called("adopt", "--pid", "4194304", **world.settings)
    assert (gone.returncode, "there is no process 4194304" in gone.stderr) == (2, True)
    world.client.drain("device", "GPU-a")
    done = world.adopt("--gpu", "h1:0")
    assert (done.returncode, "its GPU takes no lease now" in done.stderr) == (75, True)
