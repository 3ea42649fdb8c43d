"""Use of devices by their leases, in intervals between two looks: time, work, memory, energy.

Each interval is told until the pool has surely taken it, and counts there once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker.attribution.energy import divided, drawn_mj
from broker.attribution.load import UNKNOWN, Load, in_doubt, loads_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.attribution.accounting import Shares
    from broker.attribution.findings import AttributedSample
    from broker.devices import DeviceSample

TELL_MS: Final = 15_000
"""Time after which the intervals of all leases are told: a report tells only what changed."""

GAP_MS: Final = 30_000
"""Least time between two looks that is too long to say anything about."""

OVER_MS: Final = 60_000
"""Time after the end of a lease for which its last intervals are told: then it is accounted for."""

MOST_UNTOLD: Final = 4
"""Most intervals of a lease that wait to be told: the oldest ones go first."""

ROOM: Final = 8_192
"""Most bytes of the field, as `lua/report.lua` takes it."""


@dataclass(slots=True)
class Interval:
    """Time between two looks in which a lease was seen.

    Attributes:
        busy_ms: time of it in which the lease's processes computed; None: unknown.
        energy_mj: the lease's part of the device's energy, mJ; None: unknown.
    """

    from_ms: int
    to_ms: int
    busy_ms: float | None = None
    energy_mj: float | None = None

    def takes(self, busy: float | None, energy_mj: float | None) -> bool:
        """Tell whether the same things are known of what comes next."""
        known = (self.busy_ms is None, self.energy_mj is None)
        return self.from_ms == self.to_ms or known == (busy is None, energy_mj is None)

    def extend(self, to_ms: int, busy: float | None, energy_mj: float | None) -> None:
        """Add the time since the look before.

        The load at its end counts for all of it: drivers tell the mean since they were last asked,
        or that of a moment, and moments of many looks make a mean.
        """
        if busy is not None:
            self.busy_ms = (self.busy_ms or 0.0) + busy * (to_ms - self.to_ms)
        if energy_mj is not None:
            self.energy_mj = (self.energy_mj or 0.0) + energy_mj
        self.to_ms = to_ms

    def text(self, token: str, peak_mb: int | None) -> str:
        """Return the interval in the verb's form; an unknown value is empty."""
        told = ("" if n is None else str(round(n)) for n in (self.busy_ms, peak_mb, self.energy_mj))
        return f"{token}={self.from_ms}:{self.to_ms}:{':'.join(told)}"


@dataclass(slots=True)
class Watch:
    """Lease on one device, since it was first seen there.

    Attributes:
        interval: the open one.
        peak_mb: the most that its processes used at any look.
        blind: at some look their memory was unknown.
        hidden: at some look the device had processes that cannot be seen.
        untold: closed intervals that the pool may not have, oldest first; none changes any more.
        over_ms: when it was found to be over; None: it runs.
    """

    token: str
    interval: Interval
    peak_mb: int = 0
    blind: bool = False
    hidden: bool = False
    untold: list[str] = field(default_factory=list)
    over_ms: int | None = None

    def see(self, load: Load, shares: Shares, device: DeviceSample) -> Load:
        """Take note of a look; return what is to be made of the load.

        A lease whose processes have never been seen, on a device that had processes which cannot
        be seen, may have been theirs: the quiet looks alone would make it idle.
        """
        self.hidden = self.hidden or bool(device.unseen)
        if self.hidden and self.token in shares.unattributed | shares.unseen:
            load = UNKNOWN
        self.blind = self.blind or load.used_mb is None
        self.peak_mb = max(self.peak_mb, load.used_mb or 0)
        return load

    def extend(self, now_ms: int, busy: float | None, energy_mj: float | None) -> None:
        """Add the time since the look before; what is known of it goes by itself."""
        if not self.interval.takes(busy, energy_mj):
            self.close()
        self.interval.extend(now_ms, busy, energy_mj)

    def close(self, *, tell: bool = False) -> None:
        """Begin a new interval; the one so far is to be told if anything is known of it.

        A peak of 0 is told at the lease's end alone, since no later look can take it back.
        """
        last, over = self.interval, self.over_ms is not None
        peak_mb = self.peak_mb if self.peak_mb or (over and not self.blind) else None
        known = {last.busy_ms, last.energy_mj, peak_mb} != {None}
        if tell or (known and (last.from_ms < last.to_ms or over)):
            self.untold = [*self.untold, last.text(self.token, peak_mb)][-MOST_UNTOLD:]
        self.interval = Interval(last.to_ms, last.to_ms)


class LeaseUse:
    """Tracker of what leases use, look after look.

    Args:
        gap_ms: time between two looks that is too long to say anything about.
    """

    def __init__(self, gap_ms: int = GAP_MS) -> None:
        self._gap_ms = max(GAP_MS, gap_ms)
        self._epoch = ""
        self._at_ms = self._told_ms = 0
        self._before: dict[str, DeviceSample] = {}
        self._watches: dict[str, dict[str, Watch]] = {}
        self._doubted: dict[str, bool] = {}
        self._said: list[tuple[str, Watch, str]] = []

    @property
    def hurries(self) -> bool:
        """True while more is to be told of a lease that is over, which is accounted for soon."""
        watches = [watch for of in self._watches.values() for watch in of.values()]
        return any(watch.untold and watch.over_ms is not None for watch in watches)

    def look(self, seen: AttributedSample, epoch: str) -> dict[str, str]:
        """Return what is to be told of each device's leases: at most one interval of each.

        What a lease used before its pool lost its data is of no use to the next `epoch`.
        """
        now_ms = seen.sampled_ms
        if epoch != self._epoch:
            self._epoch = epoch
            self.rest()
        if self._at_ms - self._gap_ms <= now_ms < self._at_ms:
            now_ms = self._at_ms  # the clock was set back a little: no time has passed
        gap = not self._at_ms <= now_ms <= self._at_ms + self._gap_ms
        due = gap or now_ms - self._told_ms >= TELL_MS
        self._said, told = [], {}
        for uuid, device in seen.devices.items():
            energy_mj = drawn_mj(self._before.get(uuid), device, now_ms - self._at_ms)
            watches = self._watches.setdefault(uuid, {})
            self._end(watches, seen.shares[uuid], now_ms)
            if gap:
                _begin_anew(watches.values(), now_ms)
            self._extend(watches, seen, uuid, energy_mj, now_ms)
            if due:
                for watch in watches.values():
                    if not watch.untold:
                        watch.close()
            told[uuid] = self._tell(uuid, watches.values())
        self._watches = {uuid: of for uuid, of in self._watches.items() if uuid in seen.devices}
        self._before, self._at_ms = {**seen.devices}, now_ms
        if due:
            self._told_ms = now_ms
        return {uuid: text for uuid, text in told.items() if text}

    def rest(self) -> None:
        """Forget all, because another reporter of this host tells it."""
        self._watches, self._said, self._at_ms = {}, [], 0

    def told(self) -> None:
        """Note that the pool has what the last look returned."""
        for uuid, watch, text in self._said:
            if text in watch.untold:
                watch.untold.remove(text)
            if watch.over_ms is not None and not watch.untold:
                self._watches.get(uuid, {}).pop(watch.token, None)
        self._said = []

    def _end(self, watches: dict[str, Watch], shares: Shares, now_ms: int) -> None:
        """Close what is known of leases that are over: until the look before."""
        for token, watch in [*watches.items()]:
            if token in shares.active:
                if watch.over_ms is not None:  # it was recovered
                    watch.over_ms, watch.interval = None, Interval(now_ms, now_ms)
                continue
            if watch.over_ms is None:
                watch.over_ms = now_ms
                watch.close()
            if not watch.untold or now_ms - watch.over_ms > OVER_MS:
                del watches[token]

    def _extend(
        self,
        watches: dict[str, Watch],
        seen: AttributedSample,
        uuid: str,
        energy_mj: float | None,
        now_ms: int,
    ) -> None:
        """Add the time since the look before to each lease that was there then; note new ones."""
        device, shares = seen.devices[uuid], seen.shares[uuid]
        loads: dict[str, Load] = {}
        doubted = self._doubted[uuid] = in_doubt(device, self._doubted.get(uuid, False))
        for token, load in loads_on(seen, uuid, doubted=doubted).items():
            if token in watches:
                loads[token] = watches[token].see(load, shares, device)
                continue
            watch = watches[token] = Watch(token, Interval(now_ms, now_ms))
            watch.see(load, shares, device)
            watch.close(tell=True)
        parts = divided(energy_mj, {t: load.busy for t, load in loads.items()}, shares.active)
        for token, load in loads.items():
            if watches[token].interval.to_ms < now_ms:
                watches[token].extend(now_ms, load.busy, parts.get(token))

    def _tell(self, uuid: str, watches: Iterable[Watch]) -> str:
        """Return the oldest untold interval of as many leases as there is room for, ended first."""
        size, said = 0, []
        for watch in sorted(watches, key=lambda watch: watch.over_ms is None):
            if not watch.untold:
                continue
            size += len(watch.untold[0]) + 1
            if size > ROOM:
                break
            said.append(watch.untold[0])
            self._said.append((uuid, watch, watch.untold[0]))
        return ",".join(said)


def _begin_anew(watches: Iterable[Watch], now_ms: int) -> None:
    """Close all intervals at the look before, and begin new ones at this one."""
    for watch in watches:
        watch.close()
        watch.interval = Interval(now_ms, now_ms)
