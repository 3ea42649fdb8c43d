"""Findings of hosts as interfaces show them: about a lease, a process, a device."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from agent_sdk.state.finding_kinds import OF_LEASE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_sdk.state.devices import DeviceStatus, ProcessStatus
    from agent_sdk.state.snapshot import LeaseStatus

NAMED: Final = 3
"""Most processes that a sentence names."""


def of_lease(lease: LeaseStatus, devices: Mapping[str, DeviceStatus]) -> tuple[str, ...]:
    """Return the findings about a lease on its devices, or told to its holder; the worst first.

    devices: the known devices, by uuid.
    """
    held = (devices[uuid] for uuid, _ in lease.devices if uuid in devices)
    found = {f.kind for device in held for f in device.findings if f.subject == lease.token}
    return tuple(word for word in OF_LEASE if word in found or word in lease.notices)


def enforced(lease: LeaseStatus, devices: Mapping[str, DeviceStatus]) -> bool:
    """Return whether the driver limits a lease's memory, on each of its devices.

    devices: the known devices, by uuid.
    """
    held = [devices[uuid] for uuid, _ in lease.devices if uuid in devices]
    return bool(held) and all(lease.token in device.limited for device in held)


def held_by(device: DeviceStatus, token: str) -> tuple[ProcessStatus, ...]:
    """Return the processes of a lease on a device, the largest first."""
    return _by_size(p for p in device.processes or () if p.token == token)


def unleased(
    device: DeviceStatus, leases: Mapping[str, LeaseStatus] | None = None
) -> tuple[ProcessStatus, ...]:
    """Return the processes on a device without a lease on it, the largest first.

    leases: the living ones, by token; None: trust the host's matching.
    """

    def leased(process: ProcessStatus) -> bool:
        if leases is None:
            return bool(process.token) and not process.finding
        lease = leases.get(process.token)
        return lease is not None and any(uuid == device.uuid for uuid, _ in lease.devices)

    return _by_size(p for p in device.processes or () if not leased(p))


def named(processes: Iterable[ProcessStatus]) -> str:
    """Return a text for people that names a few processes: `pid 123 python3, pid 7 and 2 more`."""
    words = [f"pid {p.pid} {p.name}".rstrip() for p in processes]
    more = len(words) - NAMED
    return ", ".join(words[:NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(devices: Iterable[DeviceStatus]) -> Counter[tuple[str, str]]:
    """Count (host, finding) -> leases and processes, each counted once a device."""
    return Counter((device.host, f.kind) for device in devices for f in device.findings)


def _by_size(processes: Iterable[ProcessStatus]) -> tuple[ProcessStatus, ...]:
    return tuple(sorted(processes, key=lambda p: (-(p.memory_mb or 0), p.pid)))
