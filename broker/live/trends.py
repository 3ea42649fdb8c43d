"""Use of each GPU and of its memory over the last ten minutes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.devices import DeviceStatus

    Point = tuple[int, int | None, int | None]

STEP_S: Final = 15
"""Seconds of one point, which is the last reading in them."""

POINTS: Final = 40
"""Most points of a device: ten minutes."""

UNKNOWN: Final = 255
"""Byte for a value that the driver does not tell."""

ABSENT: Final = bytes((254, 254))
"""Bytes of a step without a reading of the device."""


class Trends:
    """Points of every device, from readings that are made anyway: two bytes each."""

    def __init__(self) -> None:
        self._steps: deque[int] = deque(maxlen=POINTS)
        self._points: dict[str, bytearray] = {}
        self._seen: set[str] = set()

    def sample(self, now_ms: int, devices: Iterable[DeviceStatus]) -> None:
        """Take a reading of all devices in; forget those that are gone."""
        self.begin(now_ms)
        self.add(devices)
        self.end()

    def begin(self, now_ms: int) -> None:
        """Begin a reading of all devices."""
        step = now_ms // (STEP_S * 1000)
        self._seen = set()
        if self._steps and self._steps[-1] >= step:
            return
        full = len(self._steps) == POINTS
        self._steps.append(step)
        for points in self._points.values():
            points.extend(ABSENT)
            if full:
                del points[: len(ABSENT)]

    def add(self, devices: Iterable[DeviceStatus]) -> None:
        """Take some of the devices in."""
        for device in devices:
            points = self._points.get(device.uuid)
            if points is None:
                points = self._points[device.uuid] = bytearray(ABSENT * len(self._steps))
            points[-2:] = _byte(device.telemetry["utilization_gpu_pct"]), _byte(_full(device))
            self._seen.add(device.uuid)

    def end(self) -> None:
        """Forget the devices that were not taken in."""
        for uuid in self._points.keys() - self._seen:
            del self._points[uuid]

    def told(self, uuids: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the points as JSON: by device, the oldest first, `[step, busy %, memory %]`.

        `uuids`: of these devices; None: of all.
        """
        asked = self._points if uuids is None else [u for u in uuids if u in self._points]
        return {"step_s": STEP_S, "devices": {uuid: self._told(uuid) for uuid in asked}}

    def _told(self, uuid: str) -> list[Point]:
        points = bytes(self._points[uuid])
        pairs = zip(self._steps, points[::2], points[1::2], strict=True)
        return [
            (step, _value(busy), _value(memory))
            for step, busy, memory in pairs
            if (busy, memory) != tuple(ABSENT)
        ]


def _byte(percent: float | None) -> int:
    return UNKNOWN if percent is None else min(max(0, round(percent)), ABSENT[0] - 1)


def _value(byte: int) -> int | None:
    return None if byte == UNKNOWN else byte


def _full(device: DeviceStatus) -> float | None:
    """Return the used share of the memory, in percent; None: the driver does not tell."""
    if device.used_mb is None or not device.total_mb:
        return None
    return 100 * device.used_mb / device.total_mb
