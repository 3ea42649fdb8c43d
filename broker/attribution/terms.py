"""Terms on which a device is lent: to all, to one lease at a time, or not.

They follow from its compute mode, and from what its driver tells of its memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.attribution.mps import CONTROL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.attribution.processes import Program
    from broker.devices import DeviceSample

FORBIDDEN: Final = (
    "its compute mode is Prohibited: no process may compute on it until nvidia-smi -c DEFAULT"
)

ALONE: Final = (
    "its compute mode is Exclusive_Process and MPS does not run: one process at a time may compute "
    "on it"
)


USE_UNTOLD: Final = "its driver does not tell how much of its memory is used"


def idle_unleased_mb(device: DeviceSample, others_mb: int) -> int:
    """Return the MiB that may be used without a lease on a device that counts as unused.

    The policy's `others_mb`; on a device that uses its machine's memory, the machine's own use
    besides, which no process on the GPU has. A process that does not tell its own may have all.
    """
    on_gpu = [process.memory_mb for process in device.processes or ()]
    if not device.unified or device.used_mb is None or None in on_gpu:
        return others_mb
    return others_mb + max(0, device.used_mb - sum(mb or 0 for mb in on_gpu))


def on_terms(device: DeviceSample, programs: Mapping[int, Program]) -> DeviceSample:
    """Return a device with the reason, if there is one, to lend it to one lease at a time.

    MPS lets the processes of several leases share a device in exclusive mode. The driver may not
    tell that it runs: its server is looked for among the processes on the device, too.
    """
    if device.one_lease or device.state != "ok":
        return device
    if device.used_mb is None:
        return replace(device, one_lease=USE_UNTOLD)
    if device.compute_mode != "exclusive":
        return device
    processes = device.processes or ()
    serves = any(
        process.pid in programs and programs[process.pid].name.startswith(CONTROL)
        for process in processes
    )
    return device if device.mps or serves else replace(device, one_lease=ALONE)
