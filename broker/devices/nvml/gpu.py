"""Reading of one GPU through NVML: the calls, and their units."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.devices.last_known import Fault, quiet
from broker.devices.nvml.handle import Handle, MemoryTold, identified
from broker.devices.nvml.mig import divided, is_divided, parts
from broker.devices.nvml.processes import Busy, read_processes
from broker.devices.sample import (
    ComputeMode,
    DeviceSample,
    name_of,
    number,
    uuid_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from broker.devices.nvml.xid import XidWatch

_CORE = 0
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_UNCORRECTED, _VOLATILE = 1, 0
_RECOVERY_ACTION = 230

_COMPUTE_MODES: Final[Mapping[object, ComputeMode]] = {
    0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive",
}  # fmt: skip
"""Compute modes by NVML's numbers; 1 and 3 are exclusive to a thread and to a process."""


def read(
    nvml: ModuleType, watch: XidWatch, busy: Busy, index: int
) -> tuple[DeviceSample, ...] | Fault:
    """Return the GPU at `index`, then its MIG devices; or the fault that keeps it from being named.

    From here on `watch` has its XIDs.

    Raises:
        NVMLError: there is no handle or UUID to be had; see `fault_of`.
    """
    raw = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = uuid_of(nvml.nvmlDeviceGetUUID(raw))
    if not uuid:
        return Fault("error", "NVML gives this GPU no usable UUID")
    watch.add(raw, uuid)
    gpu = Handle(nvml, raw)
    memory = gpu.memory()
    unreadable = gpu.complaint
    device = _read_health(gpu, _row(index, uuid, gpu, memory))
    of_mig: list[DeviceSample] = []
    mig = Handle(nvml, raw)
    if is_divided(mig):
        of_mig = parts(mig, device)
        device = divided(device, of_mig)
    elif mig.complaint is None:
        listed = read_processes(gpu)
        processes = listed.processes
        if processes is not None:
            processes = busy.mark(gpu, uuid, processes)
        device = replace(device, processes=processes, mps=listed.mps, unseen=listed.unseen)
    fault = gpu.complaint if gpu.gone else unreadable or mig.complaint
    if fault is None:
        told = gpu.complaint.reason if gpu.complaint else None
        return replace(device, nvml_error=told), *of_mig
    return fault if fault.ended else tuple(quiet(row, fault) for row in [device, *of_mig])


def _row(index: int, uuid: str, gpu: Handle, memory: MemoryTold) -> DeviceSample:
    name = name_of(gpu.ask("nvmlDeviceGetName"))
    busy_pct = number(getattr(gpu.ask("nvmlDeviceGetUtilizationRates"), "gpu", None), 0, 100)
    return replace(
        identified(index, uuid, name, memory),
        unified=not memory.own,
        utilization_gpu_pct=busy_pct,
        temperature_c=_temperature(gpu),
        power_draw_w=_watts(gpu.ask("nvmlDeviceGetPowerUsage")),
        energy_mj=_whole(gpu.ask("nvmlDeviceGetTotalEnergyConsumption")),
        nvml_gpu_util_pct=busy_pct,
        compute_mode=_COMPUTE_MODES.get(gpu.ask("nvmlDeviceGetComputeMode"), ""),
    )


def _read_health(gpu: Handle, device: DeviceSample) -> DeviceSample:
    rows = gpu.ask("nvmlDeviceGetRemappedRows")
    pending, failed = rows[2:4] if isinstance(rows, tuple) else (None, None)
    return replace(
        device,
        power_limit_w=_watts(gpu.ask("nvmlDeviceGetEnforcedPowerLimit")),
        clock_sm_mhz=number(gpu.ask("nvmlDeviceGetClockInfo", _CLOCK_SM), 0, 1e5),
        clock_memory_mhz=number(gpu.ask("nvmlDeviceGetClockInfo", _CLOCK_MEMORY), 0, 1e5),
        ecc_uncorrected=_whole(
            gpu.ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE), 1e15
        ),
        rows_pending=None if pending is None else bool(pending),
        rows_failed=None if failed is None else bool(failed),
        recovery_action=_recovery_action(gpu),
    )


def _temperature(gpu: Handle) -> float | None:
    """Return degrees Celsius; CUDA 14 has the newer call alone, older drivers the older one."""
    told = gpu.ask("nvmlDeviceGetTemperature", _CORE)
    if told is None and hasattr(gpu.nvml, "nvmlDeviceGetTemperatureV"):
        told = gpu.ask("nvmlDeviceGetTemperatureV", _CORE)
    return number(told, 0, 200)


def _watts(milliwatts: object) -> float | None:
    told = number(milliwatts, 0, 1e7)
    return None if told is None else told / 1000


def _whole(told: object, most: float = 1e18) -> int | None:
    found = number(told, 0, most)
    return None if found is None else int(found)


def _recovery_action(gpu: Handle) -> int | None:
    values = gpu.ask("nvmlDeviceGetFieldValues", [_RECOVERY_ACTION])
    if values is None:
        return None
    field = values[0]  # type: ignore[index] # an array of one, of pynvml's own making
    action = number(field.value.uiVal, 0, 1000)
    return None if field.nvmlReturn or action is None else int(action)
