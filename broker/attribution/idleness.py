"""Idleness of leases: what must be seen of a device before a lease on it counts as unused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.attribution.visibility import unexplained

if TYPE_CHECKING:
    from agent_sdk.state.snapshot import LeaseStatus
    from broker.attribution.findings import AttributedSample
    from broker.devices import DeviceSample
    from broker.devices.sample import GpuProcess


def unused(seen: AttributedSample, lease: LeaseStatus, uuid: str) -> bool:
    """Return whether surely no process of a lease works on one of its devices.

    Work that no named process does may be the lease's: then it is not sure.
    """
    device = seen.devices.get(uuid)
    if device is None or device.processes is None or device.unseen:
        return False
    if unexplained(device) or busy_by_none(device):
        return False
    unknown = lease.token in seen.shares[uuid].unattributed | seen.shares[uuid].unseen
    return not any(
        _works(device, process)
        for process in device.processes
        if lease.token in (owners := seen.owners.get(process.pid, frozenset()))
        or (unknown and not owners)
    )


def busy_by_none(device: DeviceSample) -> bool:
    """Tell whether a device is busy, while by the driver's word none of its processes computes."""
    told = [process.busy_pct for process in device.processes or ()]
    return bool(device.utilization_gpu_pct and told and not any(told) and None not in told)


def told_apart(device: DeviceSample) -> bool:
    """Tell whether the driver's word on the work of each process can be relied on.

    On a busy GPU without a computing process it may be wrong, and under MPS it may count the work
    of all clients as the server's.
    """
    return not device.mps and any(each.busy_pct for each in device.processes or ())


def _works(device: DeviceSample, process: GpuProcess) -> bool:
    """Return whether a process computes, or may."""
    if process.busy_pct:
        return True
    busy = process.busy_pct if told_apart(device) else device.utilization_gpu_pct
    return busy is None or busy > 0
