"""Past use of a caller: what its finished leases had, and whether their size was right."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from agent_sdk.usage.period import HOUR_MS
from broker.mcp.models import PastUse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.usage.history import FinishedLease

SPARE: Final = 1.125
"""Factor from a peak to the size that is advised."""

STEP_MB: Final = 256
"""Advised sizes are multiples of it."""

ROOMY: Final = 0.75
"""Part of its memory below which a lease's peak says that it was too large."""

IDLE: Final = 0.5
"""Idle part of the observed time from which on the advice names it."""


def past_use(leases: Sequence[FinishedLease], since: str) -> PastUse:
    """Return what leases had that ended since then."""
    known_h = sum(_part_h(lease, lease.known_ms) for lease in leases)
    busy_h = sum(_part_h(lease, lease.busy_ms) for lease in leases)
    sizes = [
        (lease.mb // len(lease.devices), ceil(lease.peak_mb / len(lease.devices)))
        for lease in leases
        if lease.devices and lease.peak_mb is not None
    ]
    asked_mb, peak_mb = (max(each) for each in zip(*sizes, strict=True)) if sizes else (None, None)
    return PastUse(
        since=since,
        leases=len(leases),
        gpu_hours=round(sum(lease.gpu_hours for lease in leases), 3),
        busy_gpu_hours=round(busy_h, 3) if known_h else None,
        idle_gpu_hours=round(max(0.0, known_h - busy_h), 3) if known_h else None,
        asked_mb=asked_mb,
        peak_mb=peak_mb,
        advice=" ".join(filter(None, (_size(asked_mb, peak_mb), _idleness(known_h, busy_h)))),
    )


def _part_h(lease: FinishedLease, of_ms: int | None) -> float:
    """Return the GPU-hours of a part of a lease's time, which is summed over its devices."""
    all_ms = max(1, lease.held_ms * len(lease.devices), lease.known_ms or 0)
    return lease.gpus * lease.held_ms / HOUR_MS * (of_ms or 0) / all_ms


def _size(asked_mb: int | None, peak_mb: int | None) -> str:
    """Return the advice on the size of the next lease."""
    if asked_mb is None or peak_mb is None:
        return "How much memory they used is not known."
    said = f"They used at most {peak_mb} of {asked_mb} MiB on a GPU"
    if ROOMY * asked_mb <= peak_mb <= asked_mb:
        return f"{said}: the size fits."
    fit_mb = STEP_MB * ceil(max(1, peak_mb) * SPARE / STEP_MB)
    if fit_mb >= asked_mb >= peak_mb:
        return f"{said}: the size is small enough."
    return f"{said}: for the same work ask for {fit_mb}."


def _idleness(known_h: float, busy_h: float) -> str:
    """Return the advice on idle time; empty: none."""
    idle = 1 - busy_h / known_h if known_h else 0.0
    if idle < IDLE:
        return ""
    return f"{idle:.0%} of their observed time was idle: release a lease between pieces of work."
