"""Finished leases as rows: for people, and as records with one form in every kind of file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from broker.cli.past.times import short_utc, utc
from broker.text.screen import paint
from broker.text.table import age, gib

if TYPE_CHECKING:
    from agent_sdk.usage.history import FinishedLease

HEAD: Final = ("ENDED (UTC)", "TOKEN", "TEAM", "AGENT", "HOST", "MODEL", "HAD", "PEAK", "HELD",
               "BUSY", "WAITED", "OUTCOME")  # fmt: skip

COLUMNS: Final = {
    "id": "text", "token": "text", "agent": "text", "team": "text", "owner": "text",
    "host": "text", "model": "text", "devices": "text", "outcome": "text",
    "granted_at": "time", "ended_at": "time", "granted_at_ms": "number", "ended_at_ms": "number",
    "held_ms": "number", "waited_ms": "number", "gpus": "fraction", "gpu_hours": "fraction",
    "mb": "number", "peak_mb": "number", "known_ms": "number", "busy_ms": "number",
    "energy_mj": "number",
}  # fmt: skip
"""Columns of a record, with their kinds; an unknown number is None."""

UNHAPPY: Final = {"expired", "revoked", "preempted"}


def record(lease: FinishedLease) -> dict[str, Any]:
    """Return a lease as a record with COLUMNS; times as `2026-11-30T12:00:00Z`."""
    made = {
        "devices": ",".join(f"{uuid}={mb}" for uuid, mb in lease.devices),
        "granted_at": utc(lease.granted_at_ms),
        "ended_at": utc(lease.ended_at_ms),
        "gpu_hours": round(lease.gpu_hours, 6),
    }
    return {name: made[name] if name in made else getattr(lease, name) for name in COLUMNS}


def cells(lease: FinishedLease) -> tuple[str, ...]:
    """Return a lease as a row for people."""
    busy = "-"
    if lease.known_ms and lease.busy_ms is not None:
        busy = f"{min(1.0, lease.busy_ms / lease.known_ms):.0%}"
    return (
        short_utc(lease.ended_at_ms),
        lease.token[:8],
        lease.team,
        lease.agent,
        lease.host,
        lease.model,
        gib(lease.mb) if lease.devices else "-",
        "-" if lease.peak_mb is None else gib(lease.peak_mb),
        age(lease.held_ms),
        busy,
        "-" if lease.waited_ms is None else age(lease.waited_ms),
        paint(lease.outcome, "red" if lease.outcome in UNHAPPY else None),
    )
