"""One GPU as NVML tells it: which calls, in which units, and what their failures mean.

The pynvml module is handed in by `nvml`, which alone imports it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker.devices.known import Fault, quiet
from broker.devices.sample import (
    MAX_MB,
    DeviceSample,
    model_of,
    name_of,
    number,
    percent,
    reserve_of,
    text,
    uuid_of,
)

if TYPE_CHECKING:
    from types import ModuleType

_MIB = 1024 * 1024
_LOST = frozenset({15, 16})
# Not supported, no permission, not found, function not found, no data, version mismatch,
# deprecated: this driver or card does not tell, and nothing is wrong with the GPU.
_ABSENT = frozenset({3, 4, 6, 13, 21, 25, 26})
_SENTENCES = {
    1: "NVML is not initialised",
    4: "This process may not ask NVML: no permission",
    9: "The NVIDIA driver is not loaded",
    10: "NVML timed out",
    12: "No NVIDIA driver library (libnvidia-ml.so.1) on this machine",
    13: "This NVIDIA driver is too old for NVML to be used",
    15: "The GPU is lost: it no longer answers on its bus; reset it or reboot",
    16: "The GPU must be reset before it can be used again",
    18: "The NVIDIA driver and its library differ in version, as after an upgrade: "
    "reload the driver or reboot, then restart this process",
    19: "The GPU is in use by something that keeps NVML out",
    27: "The GPU is not ready",
    28: "NVML finds no such GPU",
    999: "The NVIDIA driver reports an unknown error",
}
_NO_MEMORY = "NVML does not tell how much memory this GPU has"


def _sentence(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "nvidia-ml-py is not installed: pip install 'gpu-lease-broker[broker]'"
    value = getattr(error, "value", None)
    if isinstance(value, int):
        return _SENTENCES.get(value) or f"NVML failed with error {value}: {text(error)[:120]}"
    return f"NVML failed: {type(error).__name__}: {text(error)[:120]}"


def fault_of(error: Exception) -> Fault:
    """What an exception from pynvml, or from importing it, says about a GPU."""
    lost = getattr(error, "value", None) in _LOST
    return Fault("lost" if lost else "error", _sentence(error))


class _Gpu:
    """One GPU's calls, guarded one by one; none is made after one that finds the GPU lost."""

    def __init__(self, nvml: ModuleType, handle: object) -> None:
        self._nvml = nvml
        self._handle = handle
        self.complaint: Fault | None = None

    def ask(self, function: str, *args: object) -> object:
        """The answer, or None when there is none."""
        if self.lost:
            return None
        try:
            return getattr(self._nvml, function)(self._handle, *args)
        except Exception as error:  # noqa: BLE001 - one field must not cost the others
            if getattr(error, "value", None) not in _ABSENT:
                fault = fault_of(error)
                if self.complaint is None or fault.state == "lost":
                    self.complaint = fault
            return None

    @property
    def lost(self) -> bool:
        """Whether a call has found the GPU lost."""
        return self.complaint is not None and self.complaint.state == "lost"

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes in all, and bytes allocated.

        Drivers differ on whether v2's `used` counts what the driver keeps for itself, so
        allocated is total - free - reserved, right for each of them. v1 does not tell reserved
        apart, so there it counts as allocated.
        """
        info = self.ask("nvmlDeviceGetMemoryInfo", self._nvml.nvmlMemory_v2)
        if info is None and self.complaint is None:
            info = self.ask("nvmlDeviceGetMemoryInfo")
        total, free = getattr(info, "total", 0), getattr(info, "free", 0)
        if not _MIB <= total <= MAX_MB * _MIB:
            return None, None
        allocated = total - free - getattr(info, "reserved", 0)
        return total, allocated if 0 <= allocated <= total else None


def read(nvml: ModuleType, index: int) -> DeviceSample | Fault:
    """The GPU at `index`, or why it cannot be named.

    Raises:
        NVMLError: there is no handle or UUID to be had; see `fault_of`.
    """
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = uuid_of(nvml.nvmlDeviceGetUUID(handle))
    if not uuid:
        return Fault("error", "NVML gives this GPU no usable UUID")
    gpu = _Gpu(nvml, handle)
    total, allocated = gpu.memory()
    unreadable = gpu.complaint
    device = _row(index, uuid, gpu, total, allocated)
    fault = gpu.complaint if gpu.lost else unreadable
    if fault is not None:
        return quiet(device, fault)
    return device if gpu.complaint is None else replace(device, nvml_error=gpu.complaint.reason)


def _row(
    index: int, uuid: str, gpu: _Gpu, total: int | None, allocated: int | None
) -> DeviceSample:
    name = name_of(gpu.ask("nvmlDeviceGetName"))
    busy_pct = number(getattr(gpu.ask("nvmlDeviceGetUtilizationRates"), "gpu", None), 0, 100)
    milliwatts = number(gpu.ask("nvmlDeviceGetPowerUsage"), 0, 1e7)
    total_mb = None if total is None else total // _MIB
    return DeviceSample(
        uuid=uuid,
        index=index,
        name=name,
        model=model_of(name),
        total_mb=total_mb,
        reserve_mb=reserve_of(total_mb),
        used_mb=None if allocated is None else -(-allocated // _MIB),
        reason="" if total_mb else _NO_MEMORY,
        utilization_gpu_pct=busy_pct,
        memory_utilization_pct=percent(allocated, total),
        temperature_c=number(gpu.ask("nvmlDeviceGetTemperature", 0), 0, 200),
        power_draw_w=None if milliwatts is None else milliwatts / 1000,
        nvml_mem_used_mb=None if allocated is None else round(allocated / _MIB, 2),
        nvml_mem_total_mb=None if total is None else round(total / _MIB, 2),
        nvml_gpu_util_pct=busy_pct,
        nvml_mem_util_pct=percent(allocated, total),
    )
