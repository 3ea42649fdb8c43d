"""Advice on sizes for people, and as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.usage.advice import FEWEST, FITS, STEP_MB
from broker.cli.past.times import short_utc
from broker.cli.past.use_table import csv_text, hours
from broker.text.screen import paint
from broker.text.table import gib, many, screen_width, table

if TYPE_CHECKING:
    from agent_sdk.usage.advice import Advised, SizeAdvice

HEAD: Final = ("TEAM", "AGENT", "LEASES", "PEAK KNOWN", "HAD", "PEAK P50", "P95", "MAX", "SIZE",
               "DID NOT FIT", "SAVES GPU-HOURS")  # fmt: skip

NAMES: Final = (
    "team", "agent", "leases", "known", "asked_mb", "peak_p50_mb", "peak_p95_mb", "peak_max_mb",
    "size_mb", "beyond", "gpu_hours", "saved_gpu_hours",
)  # fmt: skip

LIMITS: Final = f"""\
SIZE is the memory on each GPU that {FITS:.0%} of the leases with a known peak would have fitted in,
rounded up to {STEP_MB} MiB; it is said from {FEWEST} peaks on. HAD is the median of what they had.
Not known: peaks between two samples of a host; how much of its memory a framework only kept for
later, as PyTorch's cache does; and whether a job on a whole GPU would run as fast beside others."""
"""Sentences about what the table cannot know."""


def text_of(found: Advised) -> str:
    """Return the advice as a table, with what it rests on and what it cannot know."""
    if not found.rows:
        return (
            "no finished GPU lease is remembered (one is there some 12 s after its end); "
            f"{many(found.looked_at, 'other was', 'others were')} looked at"
        )
    rows = [_cells(row) for row in found.rows]
    known = sum(row.known for row in found.rows)
    every = sum(row.leases for row in found.rows)
    since = "" if found.oldest_ms is None else f", the oldest of {short_utc(found.oldest_ms)} UTC"
    evidence = f"From {many(every, 'finished GPU lease', 'finished GPU leases')}{since}; "
    evidence += f"the peak of {known} is known."
    shown = table(HEAD, rows, width=screen_width(), gives=(1, 0))
    return f"{shown}\n\n{evidence}\n{LIMITS}"


def _cells(row: SizeAdvice) -> tuple[str, ...]:
    size = "too few" if row.size_mb is None else gib(row.size_mb)
    more = row.size_mb is not None and row.asked_mb is not None and row.size_mb > row.asked_mb
    return (
        row.team,
        row.agent,
        str(row.leases),
        str(row.known),
        *("-" if mb is None else gib(mb) for mb in (
            row.asked_mb, row.peak_p50_mb, row.peak_p95_mb, row.peak_max_mb)),
        paint(size, "yellow") if more else size,
        str(row.beyond) if row.size_mb is not None else "-",
        hours(row.saved_gpu_hours),
    )  # fmt: skip


def data_of(found: Advised) -> dict[str, Any]:
    """Return the advice as data; sizes are MiB on each GPU."""
    return {
        "looked_at": found.looked_at,
        "oldest_ms": found.oldest_ms,
        "fits": FITS,
        "step_mb": STEP_MB,
        "advice": [_rounded(row) for row in found.rows],
    }


def _rounded(row: SizeAdvice) -> dict[str, Any]:
    return {k: round(x, 6) if isinstance(x, float) else x for k, x in asdict(row).items()}


def csv_of(found: Advised) -> str:
    """Return the advice as CSV."""
    return csv_text(NAMES, [_rounded(row) for row in found.rows])
