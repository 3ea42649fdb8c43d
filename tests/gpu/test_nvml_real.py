"""The NVML source on a machine that has GPUs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from broker.devices import choose

pytestmark = pytest.mark.gpu


@pytest.fixture
def nvml():
    source = choose("nvml", enable_nvml=True, safe_mode=False, host="box", smi_on_path=None)
    try:
        first = source.sample()
        if not first.devices:
            pytest.skip(f"needs a real GPU: {first.error or 'NVML counts none'}")
        yield source
    finally:
        source.close()


def test_nvml_real_gpu_tells_its_memory(nvml):
    """Each GPU has a UUID, a model, and memory in which the system and what is used have room."""
    sample = nvml.sample()
    assert (sample.source, sample.error) == ("nvml", None)
    assert sample.driver_version
    for device in sample.devices:
        assert (device.state, device.nvml_error) == ("ok", None)
        assert device.uuid.startswith(("GPU-", "MIG-"))
        assert device.used_mb <= device.total_mb
        assert device.system_mb < device.total_mb
        assert 0 <= device.memory_utilization_pct <= 100


def test_nvml_real_gpu_answers_in_time_and_the_same(nvml):
    """A warm sample takes well under a report's interval, and identities do not change."""
    before = nvml.sample()
    began = time.monotonic()
    after = nvml.sample()
    assert time.monotonic() - began < 2.0
    assert [(d.uuid, d.total_mb) for d in before.devices] == [
        (d.uuid, d.total_mb) for d in after.devices
    ]


def test_nvml_real_gpu_tells_who_is_on_it_and_how_it_fares(nvml):
    """Each GPU that is not divided names its processes; what else it tells is in range."""
    for device in nvml.sample().devices:
        if device.state != "mig":
            assert device.processes is not None
            assert len({process.pid for process in device.processes}) == len(device.processes)
        assert device.recovery_action in {None, *range(8)}
        assert device.power_limit_w is None or device.power_limit_w > 0
        assert device.ecc_uncorrected is None or device.ecc_uncorrected >= 0
        assert device.xids == ()


def test_nvml_and_smi_agree_on_a_real_gpu(nvml):
    """Both sources name the same GPUs with the same memory, to a MiB."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("needs nvidia-smi on PATH")
    smi = choose("smi", enable_nvml=None, safe_mode=False, host="box", smi_on_path=program)
    told = {device.uuid: device for device in smi.sample().devices}
    for device in nvml.sample().devices:
        other = told[device.uuid]
        assert (device.index, device.name, device.model) == (other.index, other.name, other.model)
        assert abs(device.total_mb - other.total_mb) <= 1


def opened():
    """The files of GPUs that this process has open."""
    links = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return {str(each) for each in links if str(each).startswith("/dev/nvidia")}


def test_nvml_real_gpu_is_let_go_of_until_the_next_sample(nvml):
    """No file of a GPU stays open: nvidia-smi resets none that has one."""
    nvml.sample()
    assert opened()
    assert nvml.release() == ""
    assert not opened()
    assert nvml.sample().error is None
    assert opened()
