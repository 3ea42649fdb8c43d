"""Answers about use: figures by group, and finished leases. Times are epoch seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from agent_sdk.usage.lease_runs import CPU
from agent_sdk.usage.period import HOUR_MS
from agent_sdk.usage.sums import MJ_PER_KWH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.usage.groups import Usage
    from agent_sdk.usage.history import FinishedLease
    from agent_sdk.usage.sums import UsageRow
    from broker.serializers.usage_models import PastLease, UsageGroup

GROUPS = ("day", "team", "agent", "host", "model")

MS = 1000


def usage(found: Usage) -> dict[str, Any]:
    """Return the use of a period, without its rows."""
    return {
        "now": found.now_ms / MS,
        "since": found.since_ms / MS,
        "until": found.until_ms / MS,
        "first_day": found.first_day,
        "last_day": found.last_day,
        "by": list(found.by),
        "total": row(found.total),
        "prices": dict(found.prices),
        "unpriced": list(found.unpriced),
    }


def row(of: UsageRow) -> UsageGroup:
    """Return the use of one group."""
    names = {name: getattr(of, name) for name in GROUPS}
    by_time = {"gpu_hours_by_hour": _hours(of.hours), "gpu_hours_by_day": _hours(of.days)}
    return cast("UsageGroup", names | of.figures() | by_time)


def finished(lease: FinishedLease) -> PastLease:
    """Return a lease that is over, with its whole token."""
    return {
        "id": lease.id,
        "token": lease.token,
        "agent": lease.agent,
        "team": lease.team,
        "host": None if lease.host == CPU[0] else lease.host,
        "model": lease.model,
        "gpus": [{"uuid": uuid, "memory_mb": mb} for uuid, mb in lease.devices],
        "memory_mb": lease.mb,
        "outcome": lease.outcome,
        "granted_at": lease.granted_at_ms / MS,
        "ended_at": lease.ended_at_ms / MS,
        "held_s": lease.held_ms / MS,
        "waited_s": _seconds(lease.waited_ms),
        "gpu_hours": round(lease.gpu_hours, 6),
        "observed_gpu_s": _seconds(lease.known_ms),
        "busy_gpu_s": _seconds(lease.busy_ms),
        "peak_mb": lease.peak_mb,
        "energy_kwh": None if lease.energy_mj is None else round(lease.energy_mj / MJ_PER_KWH, 9),
    }


def _hours(each_ms: Iterable[int]) -> list[float]:
    return [round(ms / HOUR_MS, 6) for ms in each_ms]


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / MS
