"""Labelled families of the hosts' findings and of the devices' health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily

from agent_sdk.state.finding_kinds import KINDS
from agent_sdk.state.findings import counted, unleased

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from agent_sdk.state.devices import DeviceStatus

DEVICE: Final = ("host", "gpu", "uuid")

MIB: Final = 1024 * 1024

MEGAHERTZ: Final = 1_000_000

SAYS: Final = {
    "processes": "Processes on it.",
    "unleased_memory_bytes": "What the seen processes without a lease have allocated together.",
    "quarantined": "1 while its host does not lend it.",
    "xid_last": "Its last NVIDIA error code.",
    "xid_last_timestamp_seconds": "Time of that code, on the pool's clock.",
    "recovery_action": "Action asked by NVML: 0 none, 1 a reset, 2 a reboot, 3 and more other.",
    "ecc_uncorrected_errors": "Memory errors that ECC could not correct since the driver's start.",
    "clock_sm_hertz": "Clock of its processors.",
    "clock_memory_hertz": "Clock of its memory.",
    "power_limit_watts": "Limit of its power draw.",
}
"""Help of each family, by its name after `gpu_broker_device_`; absent if its host cannot tell."""


def findings_family(devices: Sequence[DeviceStatus]) -> Metric:
    """Return the findings by host."""
    found = GaugeMetricFamily(
        "gpu_broker_findings", "Leases and processes with this finding now.",
        labels=("host", "finding"),
    )  # fmt: skip
    counts = counted(devices)
    for host in sorted({device.host for device in devices}):
        for word in KINDS:
            found.add_metric([host, word], counts[host, word])
    return found


def health_families(devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    """Yield the health of each device."""
    families = {
        name: GaugeMetricFamily(f"gpu_broker_device_{name}", says, labels=DEVICE)
        for name, says in SAYS.items()
    }
    for device in devices:
        for name, value in _values(device).items():
            if value is not None:
                who = [device.host, str(device.index), device.uuid]
                families[name].add_metric(who, value)
    yield from families.values()


def _values(device: DeviceStatus) -> dict[str, float | None]:
    """Return the value of each family, by its name in SAYS; None: unknown."""
    seen, told = device.processes is not None, device.telemetry
    strange_mb = sum(process.memory_mb or 0 for process in unleased(device))
    return {
        "processes": len(device.processes or ()) if seen else None,
        "unleased_memory_bytes": strange_mb * MIB if seen else None,
        "quarantined": float(device.quarantine != ""),
        "xid_last": device.xid or None,
        "xid_last_timestamp_seconds": device.xid_ms / 1000 if device.xid_ms else None,
        "recovery_action": told["recovery_action"],
        "ecc_uncorrected_errors": told["ecc_uncorrected"],
        "clock_sm_hertz": _times(told["clock_sm_mhz"], MEGAHERTZ),
        "clock_memory_hertz": _times(told["clock_memory_mhz"], MEGAHERTZ),
        "power_limit_watts": told["power_limit_w"],
    }


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
