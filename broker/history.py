"""The last hour by the minute: what this replica read in the stream, and saw of the devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final

from broker.spans import ENDED, Spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent_sdk.events import Event
    from agent_sdk.snapshot import DeviceStatus, PoolStatus

MINUTE_MS: Final = 60_000

KEPT: Final = 61
"""Minutes: the last hour, and the one that runs."""


@dataclass(slots=True)
class Minute:
    """What is known of one minute; a mean of nothing is None."""

    granted: int = 0
    ended: int = 0
    waits_s: list[float] = field(default_factory=list)
    waiting: int | None = None
    busy_pct: list[float] = field(default_factory=list)
    leased_pct: list[float] = field(default_factory=list)

    def row(self, at_ms: int) -> dict[str, Any]:
        """As the page has it. at: the minute's beginning, epoch seconds."""
        return {
            "at": at_ms / 1000,
            "granted": self.granted,
            "ended": self.ended,
            "wait_s": median(self.waits_s) if self.waits_s else None,
            "longest_wait_s": max(self.waits_s, default=None),
            "waiting": self.waiting,
            "utilization_pct": round(fmean(self.busy_pct), 1) if self.busy_pct else None,
            "leased_pct": round(fmean(self.leased_pct), 1) if self.leased_pct else None,
        }


class History:
    """The minutes of the last hour that anything is known of."""

    def __init__(self) -> None:
        self._minutes: dict[int, Minute] = {}
        self._spans = Spans()

    def take(self, events: Iterable[Event]) -> None:
        """Events in their order, those of before our start too."""
        for event in events:
            minute = self._minute(event.at_ms)
            minute.granted += event.event == "granted"
            minute.ended += event.event in ENDED and "fence" in event.fields
            minute.waits_s += [s.seconds for s in self._spans.ended_by(event) if s.what == "wait"]

    def sample(self, pool: PoolStatus, devices: Sequence[DeviceStatus]) -> None:
        """How busy and how full the devices are now."""
        minute = self._minute(pool.now_ms)
        minute.waiting = pool.waiting
        busy = [d.telemetry["utilization_gpu_pct"] for d in devices]
        known = [percent for percent in busy if percent is not None]
        if known:
            minute.busy_pct.append(fmean(known))
        if capacity_mb := sum(d.total_mb - d.reserve_mb for d in devices):
            minute.leased_pct.append(100 * sum(d.reserved_mb for d in devices) / capacity_mb)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every minute by its number, oldest first."""
        return {
            str(number): minute.row(number * MINUTE_MS)
            for number, minute in sorted(self._minutes.items())
        }

    def _minute(self, at_ms: int) -> Minute:
        number = at_ms // MINUTE_MS
        if number not in self._minutes:
            self._minutes[number] = Minute()
            newest = max(self._minutes)
            for old in [n for n in self._minutes if n <= newest - KEPT]:
                del self._minutes[old]
        return self._minutes.get(number) or Minute()  # older than an hour: of no use
