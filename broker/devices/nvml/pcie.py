"""PCIe throughput of each GPU: NVML counts for 20 ms in each direction.

That is too long for a sample, so a thread of its own asks every few seconds.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from broker.devices.bounded_call import BoundedCall
from broker.devices.nvml.handle import Handle
from broker.devices.sample import number, uuid_of

if TYPE_CHECKING:
    from types import ModuleType

_TX, _RX = 0, 1
_PERIODS = 3


class PcieLoop:
    """Thread that asks for every GPU's throughput each `period_s`, until `end`."""

    def __init__(self, nvml: ModuleType, *, period_s: float = 30.0) -> None:
        self._nvml = nvml
        self._period_s = period_s
        self._told: dict[str, tuple[float | None, float | None, float]] = {}
        self._ending = threading.Event()
        self._asking = BoundedCall(self._run, "nvml-pcie")

    def last(self, uuid: str) -> tuple[float | None, float | None]:
        """Return the KB/s sent and received by a GPU; None: not told for three periods."""
        sent, received, at = self._told.get(uuid, (None, None, 0.0))
        if time.monotonic() - at > _PERIODS * self._period_s:
            return None, None
        return sent, received

    @property
    def running(self) -> bool:
        """True if its thread may be in NVML."""
        return self._asking.running

    def leave(self) -> None:
        """Ask the thread to end; do not wait."""
        self._ending.set()

    def end(self, seconds: float) -> bool:
        """End the thread; return whether it has left NVML within `seconds`."""
        self.leave()
        return self._asking.answered_within(seconds)

    def _run(self) -> None:
        while not self._ending.is_set():
            with suppress(Exception):
                for index in range(self._nvml.nvmlDeviceGetCount()):
                    self._ask(index)
            self._ending.wait(self._period_s)

    def _ask(self, index: int) -> None:
        with suppress(Exception):
            raw = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = uuid_of(self._nvml.nvmlDeviceGetUUID(raw))
            gpu = Handle(self._nvml, raw)
            rates = []
            for direction in (_TX, _RX):
                if self._ending.is_set():
                    return
                rates.append(number(gpu.ask("nvmlDeviceGetPcieThroughput", direction), 0, 1e9))
            self._told[uuid] = (rates[0], rates[1], time.monotonic())
