"""Sums of use: what leases had, what hosts have seen of it, and what follows from that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.policy import PRICE
from agent_sdk.usage.period import HOUR_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUMS: Final = (
    "leases", "held_ms", "gpu_ms", "mb_ms", "known_gpu_ms", "busy_gpu_ms", "above_mb_ms",
    "energy_mj", "waits", "waited_ms",
)  # fmt: skip
"""Sums by their words in the store, in the order in which they are shown."""

_AT: Final = {name: at for at, name in enumerate(SUMS)}

_PRICE: Final = re.compile(PRICE)

LONGEST: Final = 24
"""Most digits of a sum that is read."""

HOURS: Final = 24

MJ_PER_KWH: Final = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSums:
    """Use of GPUs in a period: sums as stored, and as properties what follows from them.

    A lease that runs counts as if it ended at the moment of the reading, but neither in `leases`
    nor in `waits`: these count on the day of its end.

    Attributes:
        leases: leases that ended in the period.
        running: leases that run now, and ran in the period.
        held_ms: ms that leases were held, each lease counted once, however many GPUs it had.
        gpu_ms: GPU-time in ms: of each device by the part of it that the lease had.
        mb_ms: MiB-milliseconds that were leased.
        known_gpu_ms: of `gpu_ms`, what hosts have observed.
        busy_gpu_ms: of `known_gpu_ms`, while the lease's processes computed.
        above_mb_ms: of `mb_ms`, what was beyond the peak of leases whose peak is known.
        energy_mj: millijoules, as far as hosts know them.
        waits: leases that ended in the period, and had waited.
        waited_ms: ms for which those had waited.
        cost: price of `gpu_ms`, by the prices per model of the policy; None: there are none.
    """

    leases: int = 0
    running: int = 0
    held_ms: int = 0
    gpu_ms: int = 0
    mb_ms: int = 0
    known_gpu_ms: int = 0
    busy_gpu_ms: int = 0
    above_mb_ms: int = 0
    energy_mj: int = 0
    waits: int = 0
    waited_ms: int = 0
    cost: float | None = None

    @property
    def held_hours(self) -> float:
        """Hours that leases were held, each lease counted once."""
        return self.held_ms / HOUR_MS

    @property
    def gpu_hours(self) -> float:
        """GPU-hours leased."""
        return self.gpu_ms / HOUR_MS

    @property
    def busy_gpu_hours(self) -> float:
        """GPU-hours in which the leases' processes computed, as hosts observed."""
        return min(self.busy_gpu_ms, self.known_gpu_ms) / HOUR_MS

    @property
    def idle_gpu_hours(self) -> float:
        """GPU-hours that hosts observed, and in which the leases' processes did not compute."""
        return max(0, self.known_gpu_ms - self.busy_gpu_ms) / HOUR_MS

    @property
    def unknown_gpu_hours(self) -> float:
        """GPU-hours of which no host has told whether they were busy."""
        return max(0, self.gpu_ms - self.known_gpu_ms) / HOUR_MS

    @property
    def busy_share(self) -> float | None:
        """Busy part of what hosts observed, 0 to 1; None: nothing was observed."""
        known_ms = self.known_gpu_ms
        return min(1.0, self.busy_gpu_ms / known_ms) if known_ms else None

    @property
    def mb_hours(self) -> float:
        """MiB-hours leased."""
        return self.mb_ms / HOUR_MS

    @property
    def above_peak_mb_hours(self) -> float:
        """MiB-hours leased beyond the peak of leases whose peak is known."""
        return self.above_mb_ms / HOUR_MS

    @property
    def mean_wait_s(self) -> float | None:
        """Mean wait of the leases that had waited, in seconds; None: none had."""
        return self.waited_ms / self.waits / 1000 if self.waits else None

    @property
    def energy_kwh(self) -> float:
        """Energy in kWh, as far as hosts know it."""
        return self.energy_mj / MJ_PER_KWH

    def figures(self) -> dict[str, int | float | None]:
        """Return what people ask for, by name, in the units that the names say: FIGURES."""
        found = {name: getattr(self, name) for name in FIGURES}
        return {name: round(x, 6) if type(x) is float else x for name, x in found.items()}


FIGURES: Final = (
    "leases", "running", "held_hours", "gpu_hours", "busy_gpu_hours", "idle_gpu_hours",
    "unknown_gpu_hours", "busy_share", "mb_hours", "above_peak_mb_hours", "waits", "mean_wait_s",
    "energy_kwh", "cost",
)  # fmt: skip
"""Names in `UseSums.figures`. Idle GPU-hours and MiB-hours above the peak are waste."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow(UseSums):
    """Use of one group; None: the group has all of them.

    Attributes:
        day: a day of UTC, as `2026-11-30`.
        team, agent, host: their names; host `-`: leases on a CPU.
        model: the GPUs' model; `cpu`: leases on a CPU.
        hours: `gpu_ms` of each hour of the day in UTC, 24 numbers; empty: rows are not by host.
        days: `gpu_ms` of each day, the first day first; empty: they were not asked for.
    """

    day: str | None = None
    team: str | None = None
    agent: str | None = None
    host: str | None = None
    model: str | None = None
    hours: tuple[int, ...] = ()
    days: tuple[int, ...] = ()


class Adder:
    """Sums in the making, of one group and one model; fractions are rounded at the end."""

    __slots__ = ("_days", "_hours", "_running", "_sums")

    def __init__(self) -> None:
        self._sums = [0.0] * len(SUMS)
        self._hours: list[float] = []
        self._running: set[str] = set()
        self._days: dict[str, float] = {}

    def add_line(self, line: str) -> None:
        """Add sums as the store has them; words that are not legible count as 0."""
        sums = self._sums
        for word in line.split(" "):
            name, _, number = word.partition("=")
            at = _AT.get(name)
            if at is not None:
                sums[at] += _number(number)
            elif name == "hours":
                for hour, gpu_ms in enumerate(number.split(",")[:HOURS]):
                    self.add_hour(hour, _number(gpu_ms))

    def add(self, name: str, amount: float) -> None:
        """Add to one of the sums."""
        self._sums[_AT[name]] += amount

    def add_hour(self, hour: int, gpu_ms: float) -> None:
        """Add GPU-time to an hour of the day."""
        self._hours = self._hours or [0.0] * HOURS
        self._hours[hour] += gpu_ms

    def add_day(self, day: str, gpu_ms: float) -> None:
        """Add GPU-time to a day; it is in the sums already."""
        self._days[day] = self._days.get(day, 0.0) + gpu_ms

    def add_running(self, token: str) -> None:
        """Count a lease that runs, once."""
        self._running.add(token)

    def merge(self, other: Adder) -> None:
        """Add all of another's."""
        self._sums = [a + b for a, b in zip(self._sums, other._sums, strict=True)]
        for hour, gpu_ms in enumerate(other._hours):
            self.add_hour(hour, gpu_ms)
        for day, gpu_ms in other._days.items():
            self.add_day(day, gpu_ms)
        self._running |= other._running

    @property
    def gpu_ms(self) -> float:
        """GPU-time so far."""
        return self._sums[_AT["gpu_ms"]]

    def by_day(self, days: Iterable[str]) -> tuple[int, ...]:
        """Return the GPU-time of each of these days."""
        return tuple(round(self._days.get(day, 0.0)) for day in days)

    def result(self) -> tuple[dict[str, int], tuple[int, ...]]:
        """Return the sums by name, with `running`, and the hours."""
        sums = {name: round(x) for name, x in zip(SUMS, self._sums, strict=True)}
        return sums | {"running": len(self._running)}, tuple(map(round, self._hours))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= LONGEST else 0


def prices_of(text: str) -> dict[str, float]:
    """Return the price of a GPU-hour by model, `*` for others, by the policy's text."""
    found = (part.rpartition("=") for part in text.split(",") if _PRICE.fullmatch(part))
    return {model: float(price) for model, _, price in found}


def price_of(prices: Mapping[str, float], model: str) -> float | None:
    """Return the price of a GPU-hour of a model; None: it has none."""
    return prices.get(model, prices.get("*"))
