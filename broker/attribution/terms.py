"""Terms on which a device is lent, by its compute mode: to all, to one lease at a time, or not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.attribution.processes import Program
    from broker.devices import DeviceSample

MPS: Final = "nvidia-cuda-mps"
"""Name of MPS's control daemon and of its server, by the letters that the kernel keeps."""

FORBIDDEN: Final = (
    "its compute mode is Prohibited: no process may compute on it until nvidia-smi -c DEFAULT"
)

ALONE: Final = (
    "its compute mode is Exclusive_Process and MPS does not run: one process at a time may compute "
    "on it"
)


def on_terms(device: DeviceSample, programs: Mapping[int, Program]) -> DeviceSample:
    """Return a device with the reason, if there is one, to lend it to one lease at a time.

    MPS lets the processes of several leases share a device in exclusive mode. Where the driver does
    not tell whether MPS runs, its server is looked for among the processes on the device.
    """
    if device.compute_mode != "exclusive" or device.one_lease:
        return device
    processes = device.processes or ()
    serves = any(
        process.pid in programs and programs[process.pid].name.startswith(MPS)
        for process in processes
    )
    return device if device.mps or serves else replace(device, one_lease=ALONE)
