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


class Trends:
    """Points of every device, from readings that are made anyway."""

    def __init__(self) -> None:
        self._points: dict[str, deque[Point]] = {}

    def sample(self, now_ms: int, devices: Iterable[DeviceStatus]) -> None:
        """Take a reading of all devices in; forget those that are gone."""
        step = now_ms // (STEP_S * 1000)
        known, self._points = self._points, {}
        for device in devices:
            points = known.get(device.uuid) or deque(maxlen=POINTS)
            if points and points[-1][0] >= step:
                points.pop()
            points.append((step, _whole(device.telemetry["utilization_gpu_pct"]), _full(device)))
            self._points[device.uuid] = points

    def told(self) -> dict[str, Any]:
        """Return the points as JSON: by device, the oldest first, `[step, busy %, memory %]`."""
        return {
            "step_s": STEP_S,
            "devices": {uuid: list(points) for uuid, points in self._points.items()},
        }


def _whole(percent: float | None) -> int | None:
    return None if percent is None else round(percent)


def _full(device: DeviceStatus) -> int | None:
    """Return the used share of the memory, in percent; None: the driver does not tell."""
    if device.used_mb is None or not device.total_mb:
        return None
    return round(100 * device.used_mb / device.total_mb)
