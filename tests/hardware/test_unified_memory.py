"""GPUs that use their machine's memory, and GPUs of which the driver does not tell it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from broker.devices.unified import host_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

MIB = 1024 * 1024


@pytest.mark.parametrize("name", ["dgx_spark", "gb10_nvml", "jetson_orin"])
def test_integrated_gpu_is_leased_by_the_machine_s_memory(
    reported: Callable[..., Reported], name: str
) -> None:
    """Its total is the machine's, its use too; shares and the whole of it are lent."""
    machine = reported(name)
    [gpu] = machine.until(lambda rows: len(rows) == 1 and rows[0]["memory_total_mb"])
    host = host_memory()
    assert host is not None
    assert (gpu["state"], gpu["memory_total_mb"]) == ("ok", host.total_mb)
    assert abs(gpu["memory_used_mb"] - (host.total_mb - host.available_mb)) < 4096
    assert gpu["memory_unified"] is True
    for ask in ({"min_memory_mb": 1024}, {"min_memory_mb": 1024, "exclusive": True}):
        lease = machine.broker.granted(**ask)
        assert lease["gpus"][0]["uuid"] == gpu["uuid"]
        seen = lease["env"]["CUDA_VISIBLE_DEVICES"]
        assert seen == (gpu["uuid"] if gpu["uuid"].startswith("GPU-") else "0"), "as CUDA takes it"
        machine.broker.release(lease["token"])
    metrics = machine.broker.metrics()
    totals = [value for key, value in metrics.items() if "device_memory_total_bytes" in key]
    assert totals == [host.total_mb * MIB]


def test_setting_corrects_the_memory_of_an_integrated_gpu(
    reported: Callable[..., Reported],
) -> None:
    """An operator may say that none of the machine's memory is the GPU's: then it is not told."""
    machine = reported("jetson_orin", GPU_BROKER_UNIFIED_MEMORY_MB="0")
    [gpu] = machine.until(len)
    assert (gpu["memory_total_mb"], gpu["memory_used_mb"]) == (None, None)
    assert gpu["reason"] == "nvidia-smi does not tell how much memory this GPU has"
    keys = machine.broker.metrics()
    assert not [key for key in keys if "device_memory_" in key and "_total_bytes" in key]
    assert "?" in machine.command("status").stdout


def test_program_on_an_integrated_gpu_is_in_the_way_of_a_lease_of_the_whole(
    reported: Callable[..., Reported],
) -> None:
    """The machine's own use is not; a process without a lease that uses the GPU is."""
    machine = reported("dgx_spark")
    [gpu] = machine.until(len)
    machine.smi(apps=[{"gpu_uuid": gpu["uuid"], "pid": 1, "used_gpu_memory": 900}])
    machine.until(lambda rows: rows[0]["processes"])
    answer = machine.broker.lease(exclusive=True, min_memory_mb=1, on_unavailable="refuse")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_capacity")
    machine.broker.granted(min_memory_mb=1024)


def test_sick_gpus_are_not_offered(reported: Callable[..., Reported]) -> None:
    """To be reset: lost. Not readable: in error. The one that answers is leased, and no other."""
    machine = reported("sick_gpus")
    rows = machine.until(lambda rows: len(rows) == 4)
    assert [row["state"] for row in rows] == ["ok", "error", "lost", "lost"]
    assert all("reset" in row["reason"] for row in rows[2:])
    assert [row["memory_free_mb"] > 0 for row in rows] == [True, False, False, False]
    assert machine.broker.granted(min_memory_mb=1)["gpus"][0]["index"] == 0
    answer = machine.broker.lease(min_memory_mb=4096, on_unavailable="refuse")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_capacity")


def test_gpu_whose_use_is_not_told_takes_one_lease_at_a_time(
    reported: Callable[..., Reported],
) -> None:
    """Unknown is not free: two leases never share it, and `/gpu/info` says why."""
    machine = reported("sick_gpus")
    machine.until(lambda rows: len(rows) == 4)
    told = {"uuid": "GPU-a", "name": "NVIDIA A10", "memory.total": 23028}
    machine.smi(gpus=[told | {"memory.used": "[Insufficient Permissions]"}])
    rows = machine.until(lambda rows: any(row["uuid"] == "GPU-a" for row in rows))
    [gpu] = [row for row in rows if row["uuid"] == "GPU-a"]
    assert (gpu["state"], gpu["memory_used_mb"]) == ("ok", None)
    assert gpu["one_lease"] == "its driver does not tell how much of its memory is used"
    machine.broker.granted(min_memory_mb=100, model="NVIDIA A10")
    second = machine.broker.lease(min_memory_mb=100, model="NVIDIA A10", on_unavailable="refuse")
    assert second.status_code == 409, json.dumps(second.json())
