"""Figures of all devices of a pool, taken from some of them at a time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from agent_sdk.state.lists import shown_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.devices import DeviceStatus


class Sums:
    """Sums over devices; MiB.

    A divided GPU counts by its parts.

    Attributes:
        leased_mb: leased on all of them.
    """

    def __init__(self, devices: Iterable[DeviceStatus] = ()) -> None:
        self.leased_mb = 0
        self._left_mb = self._free_mb = self._total_mb = self._reserved_mb = 0
        self._capacity: dict[str, int] = {}  # of those that are no whole of parts by their state
        self._parents: set[str] = set()
        self._gpus: set[str] = set()
        self._states: Counter[str] = Counter()
        self._findings: Counter[str] = Counter()
        self._busy = (0, 0.0)
        self.add(devices)

    def add(self, devices: Iterable[DeviceStatus]) -> None:
        """Take devices in."""
        for device in devices:
            self.leased_mb += device.leased_mb
            self._parents.add(device.parent)
            self._add_telemetry(device)
            self._gpus.add(device.parent or device.uuid)
            self._free_mb += device.free_mb
            self._states[shown_state(device.state, drained=device.drained)] += 1
            self._findings.update(finding.kind for finding in device.findings)
            if device.state != "mig":
                self._capacity[device.uuid] = device.total_mb - device.system_mb
                self._left_mb += max(0, device.left_mb)
                self._total_mb += device.total_mb
                self._reserved_mb += device.leased_mb

    def _add_telemetry(self, device: DeviceStatus) -> None:
        busy = device.telemetry["utilization_gpu_pct"]
        if busy is not None:
            known, sum_pct = self._busy
            self._busy = known + 1, sum_pct + busy

    @property
    def busy_pct(self) -> float | None:
        """Mean use of those that tell it; None: none does."""
        known, sum_pct = self._busy
        return sum_pct / known if known else None

    @property
    def capacity_mb(self) -> int:
        """Memory that can be leased at all."""
        return sum(mb for uuid, mb in self._capacity.items() if uuid not in self._parents)

    def told(self) -> dict[str, Any]:
        """Return what the page shows of all GPUs."""
        return {
            "gpus": len(self._gpus),
            "left_mb": self._left_mb,
            "free_mb": self._free_mb,
            "total_mb": self._total_mb,
            "leased_mb": self._reserved_mb,
            "states": {k: n for k, n in self._states.items() if k not in {"ok", "mig"}},
            "findings": dict(self._findings),
        }
