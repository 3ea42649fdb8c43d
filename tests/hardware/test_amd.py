"""GPUs of AMD, read from the kernel's files of machines as people reported them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker.devices import DriverLimits, choose
from broker.devices.amd.beside import beside
from broker.devices.amd.source import AmdSource
from broker.devices.smi.source import SmiSource
from tests.api.brokers import eventually
from tests.hardware.kernel_files import HERE, expected, unpack
from tests.hardware.machines import SMI

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hardware.machines import Reported

CHILD = """
import dataclasses, json, os, pathlib, time
from broker.devices import DriverLimits, choose
from broker.devices.amd.beside import beside
from broker.devices.amd.source import AmdSource
from broker.devices.smi.source import SmiSource
source = AmdSource("h1", pathlib.Path(os.environ["GPU_BROKER_AMD_ROOT"]), wait_s=0.5)
for _ in range(2):
    began = time.monotonic()
    devices = [dataclasses.asdict(device) for device in source.sample().devices]
    took_s = time.monotonic() - began
print(json.dumps({"devices": devices, "took_s": took_s}))
"""
"""Samples twice, and tells the second sample."""


def sampled(name: str, folder: Path) -> dict[str, Any]:
    """Return the second sample of a machine, by a process that cannot read all of its files."""
    environment = os.environ | unpack(name, folder)
    told = subprocess.check_output([sys.executable, "-c", CHILD], env=environment, timeout=30)
    sample: dict[str, Any] = json.loads(told)
    return sample


@pytest.mark.parametrize(
    "name",
    [
        "mi300x_eight",
        "mi300x_partitions",
        "rx7900xtx_desktop",
        "w7900_one_asleep",
        "strix_halo",
        "radeon_vii_old_kernel",
        "mi210_container",
        "mi210_lost_and_resetting",
        "rtx3090_beside_radeons",
        "mi210_users_hidden",
    ],
)
def test_machine_is_told_as_its_owner_would_want(name: str, tmp_path: Path) -> None:
    """Identity, memory, use, temperature, power and processes of each GPU, and no GPU more.

    A sensor of a sleeping card answers with an error: a card whose sensors are read is in error.
    """
    told = sampled(name, tmp_path)["devices"]
    rows = expected(name)
    assert [device["uuid"] for device in told] == [row["id"] for row in rows]
    for device, row in zip(told, rows, strict=True):
        if (processes := device["processes"]) is not None:
            device["processes"] = {str(each["pid"]): each["memory_mb"] for each in processes}
        assert {key: device[key] for key in row if key != "id"} == {
            key: value for key, value in row.items() if key != "id"
        }, row["id"]


def test_read_that_hangs_holds_up_no_other_gpu_and_is_not_repeated(tmp_path: Path) -> None:
    """The three others are told in time; the one says which file does not answer."""
    sample = sampled("mi210_lost_and_resetting", tmp_path)
    assert sample["took_s"] < 1.5
    reasons = [device["reason"] for device in sample["devices"]]
    assert "gpu_busy_percent has not answered" in reasons[3]
    assert "resets" in reasons[1]
    assert "firmware" in reasons[2]
    assert "off the bus" in reasons[4]


def test_id_stays_while_a_card_sleeps_or_falls_silent(tmp_path: Path) -> None:
    """A board's id differs from the compute driver's; the one last told stays the GPU's."""
    unpack("w7900_one_asleep", tmp_path)
    root = tmp_path / "root"
    (card,) = root.glob("sys/devices/*/*/0000:23:00.0")
    (card / "unique_id").write_text("b0a4d00000000001\n")
    source = AmdSource("h1", root)
    assert source.sample().devices[0].uuid == "amd:b0a4d00000000001"
    assert source.sample().devices[0].runtime_id == "GPU-a100001f1f1f1f1f"
    (card / "power/runtime_status").write_text("suspended\n")
    (card / "unique_id").unlink()
    assert source.sample().devices[0].uuid == "amd:b0a4d00000000001"


def test_card_that_has_vanished_is_lost_and_keeps_its_name(tmp_path: Path) -> None:
    """Its files are gone, while the compute driver and /dev/dri still have it."""
    unpack("rx7900xtx_desktop", tmp_path)
    source = AmdSource("h1", tmp_path / "root")
    before = source.sample().devices
    (card,) = (tmp_path / "root").glob("sys/devices/*/*/0000:03:00.0")
    shutil.rmtree(card)
    (tmp_path / "root/sys/bus/pci/devices/0000:03:00.0").unlink()
    after = source.sample().devices
    assert [row.state for row in after] == ["lost", "ok"]
    assert [(row.uuid, row.name, row.index) for row in after] == [
        (row.uuid, row.name, row.index) for row in before
    ]


def test_one_partition_that_a_container_sees_is_a_partition(tmp_path: Path) -> None:
    """Its memory is the partition's, not the card's; and its id selects it, being alone."""
    unpack("mi300x_partitions", tmp_path)
    root = tmp_path / "root"
    for path in (root / "dev/dri").iterdir():
        if path.name != "renderD131":
            path.unlink()
    (only,) = AmdSource("h1", root).sample().devices
    assert (only.uuid, only.total_mb) == ("amd:a100000101010101/3", 24574)
    assert only.runtime_id == "GPU-a100000101010101"


def test_graphics_of_the_processor_are_leased_where_they_are_the_gpu(tmp_path: Path) -> None:
    """A desktop's own are shown, and never leased; Strix Halo's are all that it has."""
    unpack("rx7900xtx_desktop", tmp_path)
    discrete, helper = AmdSource("h1", tmp_path / "root").sample().devices
    assert helper.system_mb == helper.total_mb
    assert "not leased" in helper.reason
    assert discrete.system_mb < (discrete.total_mb or 0)
    drawing = {process.pid for process in discrete.processes or () if process.graphics_only}
    assert drawing == {1500, 2100}
    other = tmp_path / "other"
    other.mkdir()
    unpack("strix_halo", other)
    (halo,) = AmdSource("h1", other / "root").sample().devices
    assert (halo.unified, halo.reason) == (True, "")
    assert halo.system_mb < (halo.total_mb or 0)


def test_lease_on_amd_is_seen_by_rocm_alone(reported: Callable[..., Reported]) -> None:
    """ROCR_VISIBLE_DEVICES has the runtime's id; nothing selects again among what it leaves."""
    machine = reported("mi300x_eight", PATH=os.environ["PATH"])
    rows = machine.until(lambda gpus: len(gpus) == 8)
    assert rows[0]["name"] == "AMD Instinct MI300X OAM"
    script = "echo $ROCR_VISIBLE_DEVICES:$CUDA_VISIBLE_DEVICES:${HIP_VISIBLE_DEVICES-none}"
    done = machine.command(
        "run", "-q", "--memory", "180GiB", "--", "sh", "-c", script, HIP_VISIBLE_DEVICES="1"
    )
    assert done.stdout.startswith("GPU-a100000"), done.stderr
    assert done.stdout.endswith("::none\n")
    with machine.sdk().lease("ann", memory_mb=1024, model="AMD Instinct MI300X OAM") as lease:
        env = lease.env()
        assert env["ROCR_VISIBLE_DEVICES"] == f"GPU-{lease.devices[0].uuid.removeprefix('amd:')}"
        assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_lost_and_silent_gpus_are_not_offered(reported: Callable[..., Reported]) -> None:
    """The one that is well is leased; the four others say what is wrong."""
    machine = reported("mi210_lost_and_resetting", GPU_BROKER_DEVICES="amd")
    rows = machine.until(lambda gpus: len(gpus) == 5, 20)
    assert [row["state"] for row in rows] == ["ok", "error", "error", "error", "lost"]
    client = machine.sdk()
    with client.lease("ann", memory_mb=1024, exclusive=True) as lease:
        assert lease.devices[0].uuid == "amd:a100004747474747"
        assert not any(device.free_mb for device in client.devices())


def test_each_vendors_gpus_are_told_by_its_own_driver(reported: Callable[..., Reported]) -> None:
    """The GeForce stands once; a lease on it hides the Radeons, and the other way round."""
    machine = reported("rtx3090_beside_radeons")
    rows = machine.until(lambda gpus: len(gpus) == 3)
    assert [(row["index"], row["uuid"][:4]) for row in rows] == [(0, "GPU-"), (1, "amd:"),
                                                                 (2, "amd:")]  # fmt: skip
    client = machine.sdk()
    with client.lease("ann", memory_mb=20_000) as geforce:
        assert geforce.env(visible="index")["CUDA_VISIBLE_DEVICES"] == "0"
        assert geforce.env()["ROCR_VISIBLE_DEVICES"] == ""
    with client.lease("ann", memory_mb=1000, model=rows[2]["name"]) as radeon:
        env = radeon.env()
        assert (env["ROCR_VISIBLE_DEVICES"], env["CUDA_VISIBLE_DEVICES"]) == ("1", "")


def test_amd_machine_on_which_nvml_was_asked_for_is_no_trouble(
    reported: Callable[..., Reported],
) -> None:
    """ENABLE_NVML stands in many environments: that NVIDIA has no driver here is a warning.

    A busy machine's first report may come before NVML has said that, with its silence.
    """
    machine = reported("w7900_one_asleep", ENABLE_NVML="true")
    rows = machine.until(lambda gpus: len(gpus) == 2)
    assert [row["index"] for row in rows] == [0, 1]

    def info() -> dict[str, Any]:
        answer: dict[str, Any] = machine.broker.http.get("/gpu/info").json()
        assert "host_trouble" not in answer
        return answer

    eventually(lambda: "NVIDIA driver library" in info()["host_warnings"].get("h1", ""), 15)


def test_graphics_of_the_processor_are_not_told_beside_nvidia(tmp_path: Path) -> None:
    """A laptop of that kind would lease them to CUDA programs, also while NVML is silent."""
    unpack("strix_halo", tmp_path)
    geforce = tmp_path / "root/sys/bus/pci/devices/0000:01:00.0"
    geforce.mkdir()
    (geforce / "vendor").write_text("0x10de\n")
    (geforce / "class").write_text("0x030000\n")
    silent = beside(SmiSource("h1", "/bin/false"), AmdSource("h1", tmp_path / "root")).sample()
    assert (silent.devices, silent.error is None) == ((), False)
    smi = {"FAKE_SMI_FILE": str(HERE / "a100_pair" / "smi.json")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smi.items():
            patch.setenv(name, value)
        both = beside(SmiSource("h1", str(SMI / "nvidia-smi")), AmdSource("h1", tmp_path / "root"))
        devices = both.sample().devices
    assert [device.name for device in devices] == ["NVIDIA A100-SXM4-80GB"] * 2


def test_machine_without_amd_says_so_and_safe_mode_asks_nothing(tmp_path: Path) -> None:
    """By sentences that name the driver; a render node that is not here is another reason."""
    assert "not loaded" in (AmdSource("h1", tmp_path).sample().error or "")
    unpack("w7900_one_asleep", tmp_path)
    limits = DriverLimits(amd_root=tmp_path / "root")
    for spec, safe_mode, name in (("amd", True, "none"), ("auto", True, "none"),
                                  ("amd", False, "amd"), ("auto", False, "amd")):  # fmt: skip
        source = choose(
            spec, enable_nvml=None, safe_mode=safe_mode, host="h1", smi_on_path=None, limits=limits
        )
        assert source.name == name
    shutil.rmtree(tmp_path / "root/dev/dri")
    assert "/dev/dri" in (AmdSource("h1", tmp_path / "root").sample().error or "")


def test_reading_eight_gpus_is_quick(tmp_path: Path) -> None:
    """Less than a tenth of a report's interval, with all of their processes."""
    unpack("mi300x_eight", tmp_path)
    source = AmdSource("h1", tmp_path / "root")
    source.sample()
    began = time.process_time()
    for _ in range(5):
        source.sample()
    assert (time.process_time() - began) / 5 < 0.25
