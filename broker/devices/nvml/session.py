"""Session of NVML, with the threads that work from its opening to its end."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from broker.devices.nvml.pcie import PcieLoop
from broker.devices.nvml.xid import XidWatch
from broker.devices.sample import text

if TYPE_CHECKING:
    from types import ModuleType

    from broker.devices.nvml.xid import Xids

_END_S = 0.75


class Session:
    """One opening of NVML.

    Attributes:
        driver: its version, or None.
        watch: collects XIDs.
        pcie: asks for the PCIe throughput, or None.
        left: whether its threads have been told to end.
    """

    def __init__(self, nvml: ModuleType, xids: Xids, *, pcie_every_s: float | None) -> None:
        """Open NVML.

        Raises:
            NVMLError: NVML cannot be opened; see `fault_of`.
        """
        nvml.nvmlInit()
        self.nvml = nvml
        self.left = False
        self._began = time.monotonic()
        self.driver: str | None = None
        with suppress(nvml.NVMLError):
            self.driver = text(nvml.nvmlSystemGetDriverVersion()) or None
        self.watch = XidWatch(nvml, xids)
        self.pcie = None if pcie_every_s is None else PcieLoop(nvml, period_s=pcie_every_s)

    @property
    def age_s(self) -> float:
        """Seconds since the opening."""
        return time.monotonic() - self._began

    @property
    def running(self) -> bool:
        """True if one of the session's threads may be in NVML."""
        return self.watch.running or (self.pcie is not None and self.pcie.running)

    def persists(self, index: int) -> bool:
        """Tell whether the driver keeps a GPU ready; True also where it does not say."""
        with suppress(Exception):
            handle = self.nvml.nvmlDeviceGetHandleByIndex(index)
            return bool(self.nvml.nvmlDeviceGetPersistenceMode(handle))
        return True

    def leave(self) -> None:
        """Ask the threads to end, without waiting; the session is of no use any more."""
        self.left = True
        self.watch.leave()
        if self.pcie is not None:
            self.pcie.leave()

    def shut(self) -> bool:
        """Leave the session, and shut NVML unless a call of its threads hangs; return whether shut.

        Never call this while a GPU is read.
        """
        seconds = 0.0 if self.left else _END_S
        self.leave()
        if self.pcie is not None and not self.pcie.end(seconds):
            return False
        if not self.watch.end(seconds):
            return False
        with suppress(self.nvml.NVMLError):
            self.nvml.nvmlShutdown()
        return True
