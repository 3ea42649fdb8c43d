"""A host whose GPUs, or some of them, are not seen: every door tells why."""

from __future__ import annotations

import ctypes.util
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import BIN, eventually
from tests.hardware.machines import assert_slow
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hardware.machines import Reported

CALM = {"GPU_BROKER_REPORT_S": "1"}
"""Reports that a busy machine makes in time, so that the host is not away when it is asked."""

UNKNOWN = "The NVIDIA driver reports an unknown error"


def told(machine: Reported, *commands: str) -> list[str]:
    """Return the output of each of these commands on one line; `doctor` needs its own process."""
    done = [
        machine.command(each) if each == "doctor" else called(each, **machine.settings)
        for each in commands
    ]
    return [" ".join(each.stdout.split()) for each in done]


def test_gpu_without_a_handle_has_a_row_and_its_host_is_in_trouble(
    reported: Callable[..., Reported],
) -> None:
    """Three GPUs are three rows; every interface says of the one what is wrong with it."""
    machine = reported("one_handle_fails", **CALM)
    rows = machine.until(lambda rows: len(rows) == 3)
    assert [(row["index"], row["state"], row["uuid"]) for row in rows] == [
        (0, "ok", "GPU-00000000-0000-0000-0000-000000000000"),
        (1, "error", "UNKNOWN-h1-1"),
        (2, "ok", "GPU-00000000-0000-0000-0000-000000000002"),
    ]
    assert rows[1]["reason"] == UNKNOWN
    trouble = f"GPU 1 cannot be identified: {UNKNOWN}"
    host = eventually(lambda: (h := machine.host())["trouble"] and h, 5)
    assert (host["trouble"], host["alive"]) == (trouble, True)
    assert machine.broker.http.get("/gpu/info").json()["host_trouble"] == {"h1": trouble}
    assert machine.broker.http.get("/ready").json() == {"ready": True}
    for said in told(machine, "status", "hosts"):
        assert trouble in said
    doctor = machine.command("doctor")
    assert trouble in " ".join(doctor.stdout.split())
    assert doctor.returncode == 1
    assert machine.broker.metrics()['gpu_broker_host_trouble{host="h1"}'] == 1.0
    events = called("events", **machine.settings).stdout.splitlines()
    [event] = [event for event in events if "host_trouble" in event]
    assert UNKNOWN in event
    assert machine.broker.said().count(trouble) == 1


def test_gpu_without_a_handle_takes_nothing_from_the_others(
    reported: Callable[..., Reported],
) -> None:
    """Teams borrow by what all devices hold: of one whose memory is not known that is nothing."""
    machine = reported("one_handle_fails")
    machine.until(lambda rows: len(rows) == 3)
    agent = machine.sdk()
    room_mb = {device.uuid[:7]: device.total_mb - device.system_mb for device in agent.devices()}
    assert room_mb == {"GPU-000": 79_112, "UNKNOWN": 0}
    assert agent.pool().capacity_mb == 2 * 79_112


def test_gpu_that_is_identified_at_last_leaves_no_row_behind(
    reported: Callable[..., Reported],
) -> None:
    """The row without a UUID goes, and the trouble with it; a lease gets the GPU."""
    machine = reported("one_handle_fails")
    machine.until(lambda rows: len(rows) == 3)
    machine.later()
    rows = machine.until(lambda rows: [row["state"] for row in rows] == ["ok"] * 3)
    assert [row["uuid"][:4] for row in rows] == ["GPU-"] * 3
    events = called("events", **machine.settings).stdout.splitlines()
    assert sum("UNKNOWN-h1-1" in event for event in events) == 2, "it came, and is forgotten"
    assert machine.host()["trouble"] is None
    assert "host_trouble" not in machine.broker.http.get("/gpu/info").json()
    leases = [machine.broker.granted(min_memory_mb=70_000, ttl_s=60) for _ in range(3)]
    assert len({lease["gpus"][0]["uuid"] for lease in leases}) == 3


ANOTHER = "class NVMLError(Exception):\n    pass\n\n\ndef nvmlInit():\n    pass\n"
"""A module pynvml as another package installs it: it lacks much of nvidia-ml-py's."""


def test_another_packages_pynvml_hides_nothing(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """One that stands before nvidia-ml-py's on the path is said, and passed over."""
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "pynvml.py").write_text(ANOTHER)
    machine = reported("another_pynvml", PYTHONPATH=str(tmp_path / "before"), **CALM)
    rows = machine.until(lambda rows: len(rows) == 2)
    assert [row["state"] for row in rows] == ["ok", "ok"]
    warning = machine.host()["warning"]
    assert warning.startswith(f"another package's pynvml ({tmp_path}/before/pynvml.py) hides ")
    assert machine.host()["trouble"] is None
    info = machine.broker.http.get("/gpu/info").json()
    assert info["host_warnings"] == {"h1": warning}
    assert info["nvml_supported"] is True
    for said in told(machine, "status", "hosts"):
        assert warning in said
    assert machine.broker.metrics()['gpu_broker_host_warning{host="h1"}'] == 1.0


def test_another_packages_pynvml_in_place_of_ours_is_said(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """The host is in trouble where its file lies over nvidia-ml-py's, with the way out."""
    (tmp_path / "over").mkdir()
    (tmp_path / "over" / "pynvml.py").write_text(ANOTHER)
    (tmp_path / "over" / "nvidia_ml_py-13.dist-info").mkdir()
    metadata = tmp_path / "over" / "nvidia_ml_py-13.dist-info" / "METADATA"
    metadata.write_text("Name: nvidia-ml-py\nVersion: 13\n")
    machine = reported("another_pynvml", PYTHONPATH=str(tmp_path / "over"), PATH=str(BIN), **CALM)
    trouble = machine.trouble(f"another package's pynvml ({tmp_path}/over/pynvml.py) is in the ")
    assert "pip install --force-reinstall nvidia-ml-py" in trouble
    info = machine.broker.http.get("/gpu/info").json()
    assert (info["gpus"], info["nvml_supported"], info["nvml_init_error"]) == ([], False, trouble)
    assert info["message"] == f"no GPU is seen: h1: {trouble}"
    [doctor] = told(machine, "doctor")
    assert "WRONG host h1 does not see its GPUs: another package's pynvml" in doctor


def test_nvidia_smi_is_asked_where_nvml_has_no_library(reported: Callable[..., Reported]) -> None:
    """With `auto`, which says so; a lease gets the GPU, and /ready stays what it is."""
    if ctypes.util.find_library("nvidia-ml"):
        pytest.skip("this machine has NVML's library")
    machine = reported("nvml_out_of_the_way", ENABLE_NVML="true", **CALM)
    [gpu] = machine.until(len)
    assert (gpu["name"], gpu["state"]) == ("NVIDIA GeForce RTX 4090", "ok")
    warning = eventually(lambda: machine.host()["warning"], 5)
    assert warning.startswith("NVML cannot be used, and nvidia-smi is asked in its place")
    assert warning.endswith("No NVIDIA driver library (libnvidia-ml.so.1) on this machine")
    info = machine.broker.http.get("/gpu/info").json()
    assert info["nvml_init_error"] == "No NVIDIA driver library (libnvidia-ml.so.1) on this machine"
    assert info["nvml_supported"] is False
    assert machine.broker.granted(min_memory_mb=20_000, ttl_s=60)["gpus"][0]["uuid"] == gpu["uuid"]
    assert machine.broker.said().count(warning) == 1
    [doctor] = told(machine, "doctor")
    assert f"NOTE host h1 warns: {warning}" in doctor


def test_library_in_another_place_is_taken_from_there(
    reported: Callable[..., Reported], driver: Path
) -> None:
    """NVML is read through it, and the host warns that programs may need its folder."""
    if ctypes.util.find_library("nvidia-ml"):
        pytest.skip("this machine has NVML's library")
    machine = reported(
        "another_pynvml", LD_LIBRARY_PATH="/nonexistent", GPU_BROKER_NVML_LIBRARY=str(driver)
    )
    machine.until(lambda rows: len(rows) == 2)
    assert str(driver / "libnvidia-ml.so.1") in machine.host()["warning"]
    assert machine.broker.http.get("/gpu/info").json()["nvml_supported"] is True


def test_slow_nvml_is_waited_for(reported: Callable[..., Reported]) -> None:
    """GPUs that need longer than the limit are leased, and the host says what would help."""
    machine = reported("slow_nvml", GPU_BROKER_DRIVER_WAIT_S="0.3")
    rows = machine.until(
        lambda rows: len(rows) == 2 and all(row["state"] == "ok" for row in rows), 20
    )
    assert [row["uuid"][:4] for row in rows] == ["GPU-", "GPU-"]
    assert_slow("NVML", eventually(lambda: machine.host()["warning"], 10))
    assert machine.host()["trouble"] is None
    assert all(row["state"] == "ok" for row in machine.gpus())


def test_driver_that_lists_no_gpu_is_said(reported: Callable[..., Reported]) -> None:
    """A host that was told to ask it is in trouble; one with simulated or no GPUs is not."""
    machine = reported("driver_without_gpus")
    assert machine.trouble("NVML works") == "NVML works here, and lists no GPU"
    machine.words("count=1")
    machine.until(len)
    eventually(lambda: machine.host()["trouble"] is None, 5)


def test_nvml_that_fails_with_its_library_is_stood_in_for(
    reported: Callable[..., Reported], driver: Path, tmp_path: Path
) -> None:
    """Also where the library is there and this process may not use it."""
    (tmp_path / "words").write_text("init=4")
    machine = reported(
        "nvml_out_of_the_way", ENABLE_NVML="true", LD_LIBRARY_PATH=str(driver),
        FAKE_NVML_FILE=str(tmp_path / "words"),
    )  # fmt: skip
    [gpu] = machine.until(len)
    assert (gpu["name"], gpu["state"]) == ("NVIDIA GeForce RTX 4090", "ok")
    warning = eventually(lambda: machine.host()["warning"], 5)
    assert warning.endswith("This process may not ask NVML: no permission")
