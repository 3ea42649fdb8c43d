"""Control daemons of MPS, CUDA's Multi-Process Service, on this host.

A driver tells of MPS only once a process computes under it. On a GPU in exclusive compute mode that
is too late: whether a second process may start is to be known before the first one does.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.devices.bounded_call import BoundedCall

if TYPE_CHECKING:
    from broker.attribution.processes import Programs
    from broker.devices import DeviceSample

CONTROL: Final = "nvidia-cuda-mps"
"""Name of the control daemon and of its server, by the letters that the kernel keeps."""

SERVED: Final = "CUDA_VISIBLE_DEVICES"
"""Variable that limits the GPUs of a daemon."""

LOOK_S: Final = 30.0
"""Seconds between two looks for daemons."""

ANSWER_S: Final = 0.5
"""Most seconds that a look may take."""


class MpsDaemons:
    """Daemons on this host, looked for while a device is exclusive and shows no MPS."""

    def __init__(self, system: Programs) -> None:
        self._system = system
        self._served: tuple[str | None, ...] = ()
        self._looking: BoundedCall[tuple[str | None, ...]] | None = None
        self._at = -LOOK_S

    def mark(self, devices: tuple[DeviceSample, ...]) -> tuple[DeviceSample, ...]:
        """Return the devices, with MPS on those exclusive ones that a daemon serves."""
        if not any(map(_waits, devices)):
            return devices
        now = time.monotonic()
        busy = self._looking is not None and self._looking.running
        if not busy and now - self._at >= LOOK_S:
            self._at = now
            self._looking = BoundedCall(lambda: self._system.values_of(CONTROL, SERVED), "mps")
            self._served = self._looking.answer() if self._looking.answered_within(ANSWER_S) else ()
        return tuple(
            replace(device, mps=True)
            if _waits(device) and any(_serves(each, device) for each in self._served)
            else device
            for device in devices
        )


def _waits(device: DeviceSample) -> bool:
    return device.compute_mode == "exclusive" and not device.mps


def _serves(served: str | None, device: DeviceSample) -> bool:
    """Tell whether a daemon with this variable serves a device; None: it has none, so it does."""
    if served is None:
        return True
    names = [name.strip() for name in served.split(",")]
    return any(
        name and (name == str(device.index) or device.uuid.startswith(name)) for name in names
    )
