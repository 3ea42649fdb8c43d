"""Visibility of the processes on a device: all of them, some, or none, with the reason.

A driver that lists no process does not prove that none is there: under WSL, in containers and in
virtual machines lists are empty or short. Processes count as seen only where they, or the quiet of
the device, explain its use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.devices.sample import NOT_TOLD

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from broker.devices import DeviceSample

UNEXPLAINED_MB: Final = 512
"""Least memory in use that some process must have; a driver alone uses less."""

QUIET_MB: Final = 64
"""Less than a CUDA context takes: where the use is not told, no more memory in use is quiet."""

BUSY: Final = (
    "the GPU is busy, and its driver names no process on it: it may be one that only draws, or one "
    "that cannot be seen from here, as under WSL, in a container or in a virtual machine"
)
UNTOLD: Final = "its driver names no process on the GPU, and does not tell whether it is in use"
MORE: Final = (
    "more memory of the GPU is in use than the processes have that its driver names: some only "
    "draw, or cannot be seen from here, as under WSL, in a container or in a virtual machine"
)
STRANGE: Final = (
    "its driver names processes that do not exist here: those of another system, or of one that "
    "this one runs in"
)


def visible(
    device: DeviceSample, unseen: str, others_mb: int, absent: AbstractSet[int]
) -> DeviceSample:
    """Return a device with the processes that can be told, and the reason where those are not all.

    Args:
        device: the device as its driver tells it.
        unseen: the reason for which this host sees no processes at all; empty: it does.
        others_mb: MiB that others than leases may use by the policy.
        absent: pids that are no process of this host, and were none at the look before.
    """
    if device.simulated or device.state != "ok":
        return device
    if unseen:
        return replace(device, processes=None, unseen=unseen)
    if device.processes is None:
        return replace(device, unseen=device.unseen or NOT_TOLD.format("its driver"))
    strange = any(process.pid in absent for process in device.processes)
    reason = device.unseen or (STRANGE if strange else "")
    reason = reason or unexplained(device, max(UNEXPLAINED_MB, others_mb))
    return replace(device, processes=device.processes or None, unseen=reason) if reason else device


def unexplained(device: DeviceSample, slack_mb: int = UNEXPLAINED_MB) -> str:
    """Return how a device is used beyond what its processes explain; empty: it is not."""
    processes, used_mb = device.processes or (), device.used_mb
    named = [process.memory_mb for process in processes]
    if not processes:
        if device.utilization_gpu_pct:
            return BUSY
        quiet = used_mb is not None and used_mb <= QUIET_MB and not device.unified
        told = used_mb is not None and (device.utilization_gpu_pct == 0 or quiet)
        if not told:
            return UNTOLD
    if used_mb is None or None in named or device.unified:  # the machine's own use is in it
        return ""
    return MORE if used_mb - sum(mb or 0 for mb in named) > slack_mb else ""
