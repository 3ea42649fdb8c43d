"""Findings of `gpu-broker doctor` about machines that use one name, or list one GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.cli.finding import Diagnosis
from broker.identity import RIVAL_MS, machine_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import HostStatus, PoolStatus


def contests(
    pool: PoolStatus, devices: Iterable[DeviceStatus], hosts: Iterable[HostStatus]
) -> list[Diagnosis]:
    """Return a finding for each host or device that two living machines claim."""
    since_ms = pool.now_ms - RIVAL_MS
    return [
        Diagnosis(
            f"two machines report as host {host.host}; refused is {machine_of(host.rival)}",
            "give it another name: GPU_BROKER_HOSTNAME",
        )
        for host in hosts
        if host.rival and host.rival_ms > since_ms
    ] + [
        Diagnosis(
            f"GPU {device.uuid} of host {device.host} is listed by host {device.rival} too",
            "stop one of the two reporters, or give each machine UUIDs of its own",
        )
        for device in devices
        if device.rival and device.rival_ms > since_ms
    ]
