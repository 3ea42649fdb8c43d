"""Limits of a cgroup's GPU memory that the driver enforces, from branch 615 on.

NVIDIA: "MPS v3 Memory Partitioning", https://docs.nvidia.com/deploy/mps/mpsv3-memory-partitioning.html.
The pynvml module is handed in by `source`, which alone imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from broker.devices.nvml.handle import MIB, fault_of

if TYPE_CHECKING:
    from types import ModuleType

SINCE: Final = 615
"""First driver branch that has them."""

NONE: Final = 2**64 - 1
"""Hard limit of a cgroup without one, in bytes."""

NO_CALL: Final = f"the NVIDIA driver cannot limit memory: that came with driver {SINCE}"
NO_BINDING: Final = "nvidia-ml-py here cannot limit memory: that came with version 13.615"

NOT_OPEN: Final = "the reporter does not have the driver open"
HANGS: Final = "a call into the NVIDIA driver has not returned"

_UNKNOWN: Final = "NVIDIA's driver does not have this GPU, and only it limits memory"
_NOT_FOUND: Final = 6

_WHY: Final[dict[object, str]] = {
    3: "the driver limits no memory on this GPU: MIG devices have no limits",
    4: "this reporter may not limit memory: it must run as root",
    6: "the driver finds no memory controller in the command's cgroup: its parent lacks +dmem in "
    "cgroup.subtree_control",
    13: NO_CALL,
}


def limit_mb(nvml: ModuleType, uuid: str, cgroup: str) -> int | None:
    """Return the MiB that a cgroup may use on a GPU; None: it has no limit, or none is told."""
    told = _struct(nvml, "Get", cgroup)
    try:
        nvml.nvmlDeviceGetMemoryLimits_v1(nvml.nvmlDeviceGetHandleByUUID(uuid), told)
    except Exception:  # noqa: BLE001 - whatever it is, no limit is known
        return None
    return None if told.hardLimit == NONE else int(told.hardLimit // MIB)


def set_limit(nvml: ModuleType, uuid: str, cgroup: str, memory_mb: int | None) -> str:
    """Limit a cgroup's memory on a GPU, or lift its limit; return why not, or an empty text.

    No memory is guaranteed (the soft limit is 0): a guarantee would add up in all parents, and
    the driver takes it back only if it is lifted before the cgroup goes.
    """
    if not hasattr(nvml, "nvmlDeviceSetMemoryLimits_v1"):
        return NO_BINDING
    wanted = _struct(nvml, "Set", cgroup)
    wanted.softLimit = 0
    wanted.hardLimit = NONE if memory_mb is None else memory_mb * MIB
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except Exception as error:  # noqa: BLE001 - the lease's holder is told
        return _UNKNOWN if getattr(error, "value", None) == _NOT_FOUND else fault_of(error).reason
    try:
        nvml.nvmlDeviceSetMemoryLimits_v1(handle, wanted)
    except Exception as error:  # noqa: BLE001 - as above
        return _WHY.get(getattr(error, "value", None)) or fault_of(error).reason
    return ""


def _struct(nvml: ModuleType, kind: str, cgroup: str) -> Any:
    form = getattr(nvml, f"c_nvml{kind}MemoryLimits_v1_t")()
    form.nameSpace = cgroup.encode()
    return form
