"""Groups of use: what leases had, added up by the words that are asked for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_sdk.usage.lease_runs import pieces, rates
from agent_sdk.usage.period import DAY_MS, HOUR_MS, day_of
from agent_sdk.usage.sums import Adder, UsageRow, price_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_sdk.usage.lease_runs import LeaseRun


@dataclass(frozen=True, slots=True)
class Usage:
    """Use of GPUs in a period, by groups.

    Attributes:
        now_ms: the time of the reading, on the pool's clock. Leases that run are counted up to it.
        since_ms, until_ms: the period, in ms on that clock: what leases that run now had in it.
        first_day, last_day: the days of UTC, as `2026-11-30`, whose sums are counted, both
            included: what has ended is known by whole days.
        asked_ms: the begin that was asked for. It is before `since_ms` where sums of that time are
            gone, as they are after the policy's `usage_days`; `since_ms` is `until_ms` where all
            of them are.
        by: the words that rows are grouped by.
        rows: the use of each group, the most GPU-hours first; with `day` among the words, the
            earliest day first.
        total: the use of all together.
        prices: the price of a GPU-hour by model, `*` for others; empty: the policy has none.
        unpriced: models that were used and have no price: their cost counts as 0.
    """

    now_ms: int
    since_ms: int
    until_ms: int
    first_day: str
    last_day: str
    asked_ms: int
    by: tuple[str, ...]
    rows: tuple[UsageRow, ...]
    total: UsageRow
    prices: Mapping[str, float]
    unpriced: tuple[str, ...]


class Period(NamedTuple):
    """Period of a reading, in ms; `first_ms`, `last_ms`: beginnings of its first and last day."""

    now_ms: int
    since_ms: int
    until_ms: int
    first_ms: int
    last_ms: int
    asked_ms: int
    prices: dict[str, float]

    @property
    def days(self) -> list[int]:
        """Beginnings of its days, the newest first."""
        return list(range(self.last_ms, self.first_ms - 1, -DAY_MS))


class Groups:
    """Groups of a reading in the making, each with its sums by model, for their prices.

    `daily`: rows have the GPU-time of each day too, unless they are by day.
    """

    def __init__(self, by: tuple[str, ...], of: Period, *, daily: bool = False) -> None:
        self._by, self._of = by, of
        asked = daily and "day" not in by
        self._days = [day_of(at_ms) for at_ms in reversed(of.days)] if asked else []
        self._where = "host" in by
        self._known: dict[str, Adder | None] = {}  # of fields of a day, or of each day
        self._groups: dict[tuple[str, ...], dict[str, Adder]] = defaultdict(
            lambda: defaultdict(Adder)
        )

    def add_sums(self, day_ms: int, lines: Mapping[str, str]) -> None:
        """Add the sums of a day."""
        day = day_of(day_ms)
        if "day" in self._by:
            self._known.clear()
        for name, line in lines.items():
            if name not in self._known:
                self._known[name] = self._sums_of(day, name)
            if sums := self._known[name]:
                before_ms = sums.gpu_ms
                sums.add_line(line)
                if self._days:
                    sums.add_day(day, sums.gpu_ms - before_ms)

    def _sums_of(self, day: str, name: str) -> Adder | None:
        """Return the sums to which a field of a day belongs; None: its name is not legible."""
        if self._where:
            host, bar, model = name.partition("|")
            team = agent = bar
        else:
            team, agent, model = ([*name.split(" ", 2), "", ""])[:3]
            host = agent
        return self._sums(day, team, agent, host, model) if host and model else None

    def add_run(
        self, run: LeaseRun, uses: Mapping[str, Mapping[str, int]], days: Sequence[int]
    ) -> None:
        """Add what a lease has had on these days; while it runs, within the period alone."""
        begin_ms, end_ms = run.granted_ms, run.ended_ms
        if end_ms is None:
            end_ms = min(self._of.now_ms, self._of.until_ms)
            begin_ms = max(begin_ms, self._of.since_ms)
        from_ms, until_ms = max(begin_ms, min(days)), min(end_ms, max(days) + DAY_MS)
        at_once = run.granted_ms == end_ms == from_ms < max(days) + DAY_MS
        if until_ms <= from_ms and not at_once:
            return
        each = rates(run, self._of.now_ms if run.ended_ms is None else run.ended_ms, uses)
        for day_ms, piece_ms, to_ms in pieces(from_ms, until_ms):
            day = day_of(day_ms)
            sums = self._sums(day, run.team, run.agent, run.host, run.model)
            before_ms = sums.gpu_ms
            each.add(sums, to_ms - piece_ms)
            if self._days:
                sums.add_day(day, sums.gpu_ms - before_ms)
            if self._where:
                each.add_hours(sums, day_ms, piece_ms, to_ms)
            if run.ended_ms is None:
                sums.add_running(run.token)
            elif to_ms == run.ended_ms:
                sums.add("leases", 1)
                if run.waited_ms is not None:
                    sums.add("waits", 1)
                    sums.add("waited_ms", run.waited_ms)

    def _sums(self, day: str, team: str, agent: str, host: str, model: str) -> Adder:
        of = {"day": day, "team": team, "agent": agent, "host": host, "model": model}
        return self._groups[tuple(of[word] for word in self._by)][model]

    def result(self) -> Usage:
        """Return the answer."""
        rows = [self._row(models, key) for key, models in self._groups.items()]
        rows.sort(key=lambda row: (row.day or "", -row.gpu_ms, -row.held_ms, _names(row)))
        of, everything = self._of, self._by_model()
        unpriced = {
            model
            for model, sums in everything.items()
            if of.prices and sums.gpu_ms and price_of(of.prices, model) is None
        }
        return Usage(
            now_ms=of.now_ms,
            since_ms=of.since_ms,
            until_ms=of.until_ms,
            first_day=day_of(of.first_ms),
            last_day=day_of(of.last_ms),
            asked_ms=of.asked_ms,
            by=self._by,
            rows=tuple(rows),
            total=self._row(everything, ()),
            prices=of.prices,
            unpriced=tuple(sorted(unpriced)),
        )

    def _by_model(self) -> dict[str, Adder]:
        found: dict[str, Adder] = defaultdict(Adder)
        for models in self._groups.values():
            for model, sums in models.items():
                found[model].merge(sums)
        return found

    def _row(self, models: Mapping[str, Adder], key: tuple[str, ...]) -> UsageRow:
        together = Adder()
        for sums in models.values():
            together.merge(sums)
        figures, hours = together.result()
        named: dict[str, Any] = figures | dict(zip(self._by, key, strict=False))
        days = together.by_day(self._days)
        return UsageRow(**named, hours=hours, days=days, cost=self._cost(models))

    def _cost(self, models: Mapping[str, Adder]) -> float | None:
        if not self._of.prices:
            return None
        each = ((price_of(self._of.prices, m) or 0) * x.gpu_ms for m, x in models.items())
        return sum(each) / HOUR_MS


def _names(row: UsageRow) -> tuple[str, ...]:
    return tuple(x or "" for x in (row.team, row.agent, row.host, row.model))
