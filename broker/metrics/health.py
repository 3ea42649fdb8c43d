"""Labelled families of what hosts find, and of how sound their devices are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily

from agent_sdk.state.devices import FINDINGS
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
    "unleased_memory_bytes": "Allocated by processes that no lease on it has.",
    "quarantined": "1 while its host lends it to nobody.",
    "xid_last": "The last of NVIDIA's error codes that came from it.",
    "xid_last_timestamp_seconds": "When that came, on the pool's clock.",
    "recovery_action": "What NVML wants done: 0 nothing, 1 a reset, 2 a reboot, 3 and more other.",
    "ecc_uncorrected_errors": "Memory errors that ECC could not correct since the driver's start.",
    "clock_sm_hertz": "Of its processors.",
    "clock_memory_hertz": "Of its memory.",
    "power_limit_watts": "The most that it may draw.",
}
"""Family, after `gpu_broker_device_` -> its help; absent where the host cannot tell."""


def health_families(devices: Sequence[DeviceStatus]) -> Iterator[Metric]:
    """Findings by host, and the health of each device."""
    found = GaugeMetricFamily(
        "gpu_broker_findings", "Leases and processes of which it is found now.",
        labels=("host", "finding"),
    )  # fmt: skip
    counts = counted(devices)
    for host in sorted({device.host for device in devices}):
        for word in FINDINGS:
            found.add_metric([host, word], counts[host, word])
    yield found
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
    """Of each family, by its name in SAYS; None: unknown."""
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
