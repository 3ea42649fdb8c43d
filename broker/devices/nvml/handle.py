"""Calls of NVML for one handle, and the meaning of their failures.

The pynvml module is handed in by `nvml`, which alone imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_sdk.keys import model_of
from agent_sdk.state.telemetry import MAX_MB
from broker.devices.last_known import Fault
from broker.devices.nvml.binding import BindingError
from broker.devices.sample import DeviceSample, percent, system_mb_of, text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

MIB = 1024 * 1024

ABSENT = frozenset({3, 4, 6, 13, 21, 25, 26})
"""Codes of calls that this driver or card does not answer, while nothing is wrong with the GPU.

Not supported, no permission, not found, function not found, no data, version mismatch, deprecated.
"""

NO_LIBRARY = 12
"""Code of NVML for a library that the loader does not find."""

NONE_OF_ITS_OWN: Final = "not supported"
_UNSUPPORTED: Final[Mapping[int, object]] = {3: NONE_OF_ITS_OWN}

_NO_MEMORY = "NVML does not tell how much memory this {} has"
_LOST = frozenset({15, 16})
# Not initialised, driver not loaded, driver and library differ: the driver under which NVML was
# opened is gone.
_ENDED = frozenset({1, 9, 18})
SENTENCES = {
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


def _sentence(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "nvidia-ml-py is not installed: pip install 'gpu-lease-broker[broker]'"
    if isinstance(error, BindingError):
        return text(error)
    value = getattr(error, "value", None)
    if isinstance(value, int):
        return SENTENCES.get(value) or f"NVML failed with error {value}: {text(error)[:120]}"
    return f"NVML failed: {type(error).__name__}: {text(error)[:120]}"


def fault_of(error: Exception) -> Fault:
    """Return the fault that an exception from pynvml, or from importing it, stands for."""
    value = getattr(error, "value", None)
    return Fault("lost" if value in _LOST else "error", _sentence(error), value in _ENDED)


class MemoryTold(NamedTuple):
    """Memory of a device in bytes; None: not told.

    Attributes:
        total: all of it.
        allocated: without what the driver keeps for itself, where it tells that.
        own: False: the driver says that the device has none of its own.
    """

    total: int | None
    allocated: int | None
    own: bool = True


class Handle:
    """Guarded calls of a GPU or a MIG device; none is made once the device is found lost.

    Attributes:
        complaint: the worst fault of a call so far, or None.
    """

    def __init__(self, nvml: ModuleType, handle: object) -> None:
        self.nvml = nvml
        self.raw = handle
        self.complaint: Fault | None = None

    def ask(
        self, function: str, *args: object, means: Mapping[int, object] | None = None
    ) -> object:
        """Return the answer, or None without one. `means` maps error codes that are answers."""
        if self.gone:
            return None
        try:
            return self._call(function, args)
        except Exception as error:  # noqa: BLE001 - one field must not cost the others
            value = getattr(error, "value", None)
            if isinstance(value, int) and means is not None and value in means:
                return means[value]
            if value not in ABSENT:
                self._complain(fault_of(error))
            return None

    def _call(self, function: str, args: tuple[object, ...]) -> object:
        try:
            return getattr(self.nvml, function)(self.raw, *args)
        except self.nvml.NVMLLibraryMismatchError:  # the driver has the older call only
            return getattr(self.nvml, f"{function}_v2")(self.raw, *args)

    def _complain(self, fault: Fault) -> None:
        known = self.complaint
        if known is None or fault.state == "lost" or (fault.ended and known.state != "lost"):
            self.complaint = fault

    @property
    def gone(self) -> bool:
        """True if a call has found the GPU lost, or the session with its driver over."""
        return self.complaint is not None and (
            self.complaint.state == "lost" or self.complaint.ended
        )

    def memory(self) -> MemoryTold:
        """Return the device's memory.

        Drivers differ on whether v2's `used` counts what the driver keeps for itself, so
        allocated is total - free - reserved, right for each of them. v1 does not tell reserved
        apart, so there it counts as allocated.
        """
        info = self.ask("nvmlDeviceGetMemoryInfo", self.nvml.nvmlMemory_v2, means=_UNSUPPORTED)
        if info in (None, NONE_OF_ITS_OWN) and self.complaint is None:
            info = self.ask("nvmlDeviceGetMemoryInfo", means=_UNSUPPORTED)
        if info == NONE_OF_ITS_OWN:
            return MemoryTold(None, None, own=False)
        total, free = getattr(info, "total", -1), getattr(info, "free", 0)
        if not MIB <= total <= MAX_MB * MIB:
            return MemoryTold(None, None, own=total != 0)
        allocated = total - free - getattr(info, "reserved", 0)
        return MemoryTold(total, allocated if 0 <= allocated <= total else None)


def identified(
    index: int,
    uuid: str,
    name: str,
    memory: MemoryTold,
    *,
    kind: str = "GPU",
) -> DeviceSample:
    """Return a device with its identity and its memory; `kind` is its name in a sentence."""
    total, allocated = memory.total, memory.allocated
    total_mb = None if total is None else total // MIB
    return DeviceSample(
        uuid=uuid,
        index=index,
        name=name,
        model=model_of(name),
        total_mb=total_mb,
        system_mb=system_mb_of(total_mb),
        used_mb=None if allocated is None else -(-allocated // MIB),
        reason="" if total_mb else _NO_MEMORY.format(kind),
        memory_utilization_pct=percent(allocated, total),
        nvml_mem_used_mb=None if allocated is None else round(allocated / MIB, 2),
        nvml_mem_total_mb=None if total is None else round(total / MIB, 2),
        nvml_mem_util_pct=percent(allocated, total),
    )
