"""Machines on which not every process may compute: prohibited GPUs, and exclusive ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_sdk.errors import NoCapacity
from broker.attribution.terms import ALONE, FORBIDDEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hardware.machines import Reported


@pytest.mark.parametrize("name", ["compute_modes", "compute_modes_smi"])
def test_prohibited_gpu_is_not_offered_and_an_exclusive_one_to_one_lease(
    reported: Callable[..., Reported], name: str
) -> None:
    """Through NVML and through nvidia-smi; `explain`, `status` and `/gpu/info` say why."""
    machine = reported(name)
    rows = machine.until(lambda rows: len(rows) == 2 and all(row["sampled_at"] for row in rows))
    exclusive, prohibited = rows
    assert (prohibited["state"], prohibited["reason"]) == ("prohibited", FORBIDDEN)
    assert prohibited["memory_free_mb"] == 0
    assert (exclusive["state"], exclusive["one_lease"]) == ("ok", ALONE)
    status = " ".join(machine.command("status").stdout.split())
    assert f"one lease at a time on h1:0: {ALONE}" in status
    doctor = machine.command("doctor")
    assert "NOTE   h1:1 is prohibited" in doctor.stdout
    assert "nvidia-smi -i 1 -c DEFAULT on that host" in doctor.stdout
    agent = machine.sdk()
    lease = agent.acquire("one", memory_mb=1000, ttl_s=30)
    assert [d.uuid for d in lease.devices] == [exclusive["uuid"]]
    for ask in ({"memory_mb": 1000}, {"exclusive": True}):
        with pytest.raises(NoCapacity):
            agent.acquire("two", **ask)
    assert machine.gpus()[0]["memory_free_mb"] == 0
    said = machine.command("explain", "--agent", "two").stdout
    assert "one_lease" in said or "exclusive" in said
    assert "prohibited" in said
    assert f"prohibited {FORBIDDEN}"[:40] in " ".join(machine.command("status").stdout.split())
    agent.release(lease.token)
    assert agent.acquire("three", exclusive=True, ttl_s=30).devices


def test_exclusive_gpu_under_mps_is_shared(reported: Callable[..., Reported]) -> None:
    """MPS's server is the one process: its clients are as many as there are leases."""
    machine = reported("compute_modes")
    machine.words("count=1", "percent=0/0", "allocated=0/5", "computemode=0/3",
                  f"mps=0/{os.getpid()}/5")  # fmt: skip
    row = machine.until(lambda rows: rows[0]["mps"])[0]
    assert row["one_lease"] is None
    agent = machine.sdk()
    leases = [agent.acquire(name, memory_mb=1000, ttl_s=30) for name in ("one", "two")]
    assert {d.uuid for lease in leases for d in lease.devices} == {row["uuid"]}


def test_exclusive_gpu_under_mps_is_shared_by_the_word_of_its_server(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """nvidia-smi does not tell whether MPS runs: its server is among the processes."""
    server = tmp_path / "nvidia-cuda-mps-server"
    shutil.copy(shutil.which("sleep") or "", server)
    machine = reported("compute_modes_smi")
    uuid = machine.until(len)[0]["uuid"]
    with subprocess.Popen([server, "100"]) as process:
        try:
            machine.smi(apps=[{"gpu_uuid": uuid, "pid": process.pid, "used_gpu_memory": 30}])
            row = machine.until(lambda rows: rows[0]["processes"])[0]
            assert (row["one_lease"], row["findings"]) == (None, [])
        finally:
            process.kill()


def test_daemon_of_mps_counts_before_any_process_computes(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """It serves the GPUs that its environment names; on the others a lease is alone."""
    control = tmp_path / "nvidia-cuda-mps-control"
    shutil.copy(shutil.which("sleep") or "", control)
    served = "GPU-00000000-0000-0000-0000-000000000000"
    words = ("count=2", "percent=0/0,percent=1/0", "allocated=0/5,allocated=1/5",
             "computemode=0/3,computemode=1/3")  # fmt: skip
    with subprocess.Popen([control, "100"], env={"CUDA_VISIBLE_DEVICES": served}) as process:
        try:
            machine = reported("compute_modes")
            machine.words(*words)
            rows = machine.until(lambda rows: len(rows) == 2 and rows[1]["state"] == "ok")
            assert [(row["mps"], row["one_lease"]) for row in rows] == [
                (True, None),
                (False, ALONE),
            ]
            agent = machine.sdk()
            leases = [agent.acquire(f"a{n}", memory_mb=1000, ttl_s=30) for n in range(4)]
            uuids = [lease.devices[0].uuid for lease in leases]
            assert sorted(map(uuids.count, {row["uuid"] for row in rows})) == [1, 3]
            assert uuids.count(served) == 3
        finally:
            process.kill()


def test_mode_that_changes_counts_with_the_next_report(reported: Callable[..., Reported]) -> None:
    """A prohibited GPU comes back; one that becomes exclusive keeps the leases that it has."""
    machine = reported("compute_modes")
    machine.words("count=1", "percent=0/0", "allocated=0/5", "computemode=0/2")
    machine.until(lambda rows: rows[0]["state"] == "prohibited")
    machine.words("count=1", "percent=0/0", "allocated=0/5", "computemode=0/0")
    machine.until(lambda rows: rows[0]["state"] == "ok")
    agent = machine.sdk()
    one, _ = (agent.acquire(name, memory_mb=1000, ttl_s=30) for name in ("one", "two"))
    machine.words("count=1", "percent=0/0", "allocated=0/5", "computemode=0/1")
    machine.until(lambda rows: rows[0]["one_lease"])
    assert len(agent.leases()) == 2
    agent.release(one.token)
    with pytest.raises(NoCapacity):
        agent.acquire("three", memory_mb=1000)
    said = machine.command("explain", "--agent", "three").stdout
    assert "one_lease" in said
