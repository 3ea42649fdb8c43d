"""Figures of all devices of a pool, taken from some of them at a time."""

from __future__ import annotations

import operator
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_sdk.state.lists import shown_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent_sdk.state.devices import DeviceStatus


class MemorySums(NamedTuple):
    """Memory of one device, or of several; MiB."""

    total_mb: int = 0
    capacity_mb: int = 0
    left_mb: int = 0
    leased_mb: int = 0


class Sums:
    """Sums over devices; MiB.

    A divided GPU counts by its parts.

    Args:
        devices: the first ones.
        free_mb: returns the MiB of a device for the next request.

    Attributes:
        leased_mb: leased on all of them.
    """

    def __init__(
        self,
        devices: Iterable[DeviceStatus] = (),
        free_mb: Callable[[DeviceStatus], int] = operator.attrgetter("free_mb"),
    ) -> None:
        self._free_of = free_mb
        self.leased_mb = self._free_mb = 0
        self._memory: dict[str, MemorySums] = {}  # of those whose state is not `mig`
        self._all = MemorySums()  # of the same together
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
            self._free_mb += self._free_of(device)
            self._states[shown_state(device.state, drained=device.drained)] += 1
            self._findings.update(finding.kind for finding in device.findings)
            if device.state != "mig":
                self._add_memory(device)

    def _add_memory(self, device: DeviceStatus) -> None:
        capacity_mb, left_mb = device.total_mb - device.system_mb, max(0, device.left_mb)
        memory = MemorySums(device.total_mb, capacity_mb, left_mb, device.leased_mb)
        self._memory[device.uuid] = memory
        self._all = MemorySums(*map(operator.add, self._all, memory))

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
        return self._counted.capacity_mb

    @property
    def _counted(self) -> MemorySums:
        """Memory of all but divided GPUs: their parts have it, whatever state they are in."""
        found = self._all
        for uuid in self._parents & self._memory.keys():
            found = MemorySums(*map(operator.sub, found, self._memory[uuid]))
        return found

    def told(self) -> dict[str, Any]:
        """Return what the page shows of all GPUs."""
        memory = self._counted
        return {
            "gpus": len(self._gpus),
            "left_mb": memory.left_mb,
            "free_mb": self._free_mb,
            "total_mb": memory.total_mb,
            "leased_mb": memory.leased_mb,
            "states": {k: n for k, n in self._states.items() if k not in {"ok", "mig"}},
            "findings": dict(self._findings),
        }
