"""History of the last hour by the minute, from the event stream and from device readings.

Every replica tells the stream's part alike, also for the time before its start. The devices' use is
known only to a replica that read it at the time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from broker.live.durations import ENDED, Spans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.events import Event
    from agent_sdk.state.snapshot import PoolStatus
    from broker.live.sums import Sums

MINUTE_MS: Final = 60_000

KEPT: Final = 61
"""Minutes of the last hour, and the running one."""

MEASURED: Final = 1000
"""Most waits of a minute from which the median is taken: the last ones."""


@dataclass(slots=True)
class Minute:
    """Facts of one minute.

    Attributes:
        leased_mb: MiB leased at its end, less the MiB leased at the stream's beginning.
        waiting: requests in the queues at the last reading.
    """

    leased_mb: int
    granted: int = 0
    ended: int = 0
    waiting: int | None = None
    longest_wait_s: float | None = None
    _looks: int = 0
    _busy_pct: float = 0.0
    _waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))
    _median_s: float | None = None  # None: compute it anew

    def waited(self, seconds: float) -> None:
        """Count a wait that has ended."""
        self._waits_s.append(seconds)
        self._median_s = None
        self.longest_wait_s = max(seconds, self.longest_wait_s or 0.0)

    def looked(self, busy_pct: float) -> None:
        """Count the devices' mean use."""
        self._looks += 1
        self._busy_pct += busy_pct

    @property
    def utilization_pct(self) -> float | None:
        """Mean use of the devices; None: never told."""
        return round(self._busy_pct / self._looks, 1) if self._looks else None

    @property
    def wait_s(self) -> float | None:
        """Median of the waits; None: there was none."""
        if self._median_s is None and self._waits_s:
            self._median_s = median(self._waits_s)
        return self._median_s


class History:
    """Minutes of the last hour, as far as known."""

    def __init__(self) -> None:
        self._minutes: dict[int, Minute] = {}
        self._spans = Spans()
        self._leased_mb = 0
        self._before_mb = 0  # MiB leased at the stream's beginning
        self._capacity_mb = 0

    def take(self, events: Iterable[Event]) -> None:
        """Count events in their order, those before our start too."""
        for event in events:
            minute = self._minute(event.at_ms)
            granted = event.event == "granted"
            ended = event.event in ENDED and "fence" in event.fields
            minute.granted += granted
            begun = granted or event.event == "recovered"
            minute.ended += ended
            if begun or ended:
                self._leased_mb += (begun - ended) * sum(mb or 0 for _, mb in event.devices)
                minute.leased_mb = self._leased_mb
            for span in self._spans.ended_by(event):
                if span.what == "wait":
                    minute.waited(span.seconds)

    def sample(self, pool: PoolStatus, sums: Sums) -> None:
        """Take the devices' present use and leased share."""
        minute = self._minute(pool.now_ms)
        minute.waiting = pool.waiting
        if sums.busy_pct is not None:
            minute.looked(sums.busy_pct)
        self._before_mb = sums.leased_mb - self._leased_mb
        self._capacity_mb = sums.capacity_mb
        minute.leased_mb = self._leased_mb

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return each minute by its number, oldest first; `at` is its begin, None means unknown."""
        rows = {}
        for number, minute in sorted(self._minutes.items()):
            full = self._capacity_mb and (minute.leased_mb + self._before_mb) / self._capacity_mb
            rows[str(number)] = {
                "at": number * MINUTE_MS / 1000,
                "granted": minute.granted,
                "ended": minute.ended,
                "wait_s": minute.wait_s,
                "longest_wait_s": minute.longest_wait_s,
                "waiting": minute.waiting,
                "utilization_pct": minute.utilization_pct,
                "leased_pct": round(100 * min(1.0, max(0.0, full)), 1),
            }
        return rows

    def _minute(self, at_ms: int) -> Minute:
        number = at_ms // MINUTE_MS
        if number not in self._minutes:
            self._minutes[number] = Minute(self._leased_mb)
            newest = max(self._minutes)
            for old in [n for n in self._minutes if n <= newest - KEPT]:
                del self._minutes[old]
        return self._minutes.get(number) or Minute(0)  # older than an hour: of no use
