"""Advice on sizes: what finished leases asked for, beside the most that they used.

It goes by what hosts have seen. A peak is that of the samples of a lease's processes, so a shorter
one is missed, and memory that a framework holds back for itself counts as used.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Final

from agent_sdk.state.readings import read_now
from agent_sdk.usage import history
from agent_sdk.usage.period import at_ms

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read
    from agent_sdk.usage.history import FinishedLease
    from agent_sdk.usage.period import Instant

STEP_MB: Final = 256
"""Sizes are rounded up to so many MiB."""

FITS: Final = 0.95
"""Part of the leases that the advised size would have fitted."""

FEWEST: Final = 5
"""Leases with a known peak from which on a size is advised."""

PAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeAdvice:
    """Advice on the leases of one agent of a team; sizes are MiB on each device.

    Attributes:
        leases: finished GPU leases that were looked at.
        known: those of them whose peak is known; the numbers below are of these alone.
        asked_mb: the median of what they had; None: no peak is known.
        peak_p50_mb, peak_p95_mb, peak_max_mb: of their peaks, the median, the one that 95 % do not
            exceed, and the largest; None: no peak is known.
        size_mb: the size that would have fitted 95 % of them, rounded up to STEP_MB; None: fewer
            than FEWEST peaks are known.
        beyond: how many of them would not have fitted `size_mb`.
        gpu_hours: GPU-hours that they had.
        saved_gpu_hours: GPU-hours that others could have had if each had asked for `size_mb`,
            where that is less than it had; whole GPUs count, as if they could be shared.
    """

    team: str
    agent: str
    leases: int
    known: int
    asked_mb: int | None = None
    peak_p50_mb: int | None = None
    peak_p95_mb: int | None = None
    peak_max_mb: int | None = None
    size_mb: int | None = None
    beyond: int = 0
    gpu_hours: float = 0.0
    saved_gpu_hours: float = 0.0


@dataclass(frozen=True, slots=True)
class Advised:
    """Advice on all agents that were asked about.

    Attributes:
        rows: the advice on each agent of each team, what would save most first.
        looked_at: finished leases that were read, those on a CPU included.
        oldest_ms: when the oldest of them ended, on the pool's clock; None: there was none. What
            ended before is not known to the history, or not asked for.
    """

    rows: tuple[SizeAdvice, ...]
    looked_at: int
    oldest_ms: int | None


class _AgentLeases:
    """Leases of one agent: MiB on each device that they had, their peaks, and their GPU-hours."""

    __slots__ = ("asked", "hours", "leases", "peaks")

    def __init__(self) -> None:
        self.leases = 0
        self.asked, self.peaks, self.hours = array("q"), array("q"), array("d")

    def add(self, lease: FinishedLease) -> None:
        self.leases += 1
        if lease.peak_mb is not None:
            count = len(lease.devices)
            self.asked.append(lease.mb // count)
            self.peaks.append(ceil(lease.peak_mb / count))
            self.hours.append(lease.gpu_hours)

    def advice(self, team: str, agent: str) -> SizeAdvice:
        known = len(self.peaks)
        if not known:
            return SizeAdvice(team=team, agent=agent, leases=self.leases, known=0)
        peaks = sorted(self.peaks)
        p95_mb = quantile(peaks, FITS)
        size_mb = max(1, ceil(p95_mb / STEP_MB)) * STEP_MB if known >= FEWEST else None
        saved = 0.0
        for asked_mb, hours in zip(self.asked, self.hours, strict=True):
            if size_mb is not None and size_mb < asked_mb:
                saved += hours * (1 - size_mb / asked_mb)
        return SizeAdvice(
            team=team,
            agent=agent,
            leases=self.leases,
            known=known,
            asked_mb=quantile(sorted(self.asked), 0.5),
            peak_p50_mb=quantile(peaks, 0.5),
            peak_p95_mb=p95_mb,
            peak_max_mb=peaks[-1],
            size_mb=size_mb,
            beyond=sum(peak > size_mb for peak in peaks) if size_mb is not None else 0,
            gpu_hours=sum(self.hours),
            saved_gpu_hours=saved,
        )


def quantile(ordered: Sequence[int], part: float) -> int:
    """Return the smallest of these numbers that so large a part of them does not exceed."""
    return ordered[max(0, ceil(part * len(ordered)) - 1)]


def read(
    keys: Keys,
    since: Instant | None = None,
    *,
    agent: str | None = None,
    team: str | None = None,
) -> Generator[Read, Answer, Advised]:
    """Read the history, and advise on sizes.

    Args:
        keys: of the pool.
        since: only leases that ended then or later; None: all that are remembered.
        agent: only its leases.
        team: only its leases.

    Raises:
        BadRequest: a time has no known form.
    """
    since_ms = None if since is None else at_ms(since, (yield from read_now(keys)))
    groups: dict[tuple[str, str], _AgentLeases] = defaultdict(_AgentLeases)
    looked_at, oldest_ms, after, more = 0, None, history.START, True
    while more:
        page = yield from history.read(
            keys, after=after, limit=PAGE, agent=agent, team=team, since=since_ms
        )
        for lease in page.leases:
            looked_at += 1
            oldest_ms = min(oldest_ms or lease.ended_at_ms, lease.ended_at_ms)
            if lease.devices:
                groups[lease.team, lease.agent].add(lease)
        after, more = page.last, page.more
    rows = [group.advice(*name) for name, group in groups.items()]
    rows.sort(key=lambda row: (-row.saved_gpu_hours, -row.gpu_hours, row.team, row.agent))
    return Advised(tuple(rows), looked_at, oldest_ms)
