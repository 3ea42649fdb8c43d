"""Use of a period for people, and as data."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.usage.sums import FIGURES
from broker.cli.past.times import short_utc
from broker.text.printable import printable
from broker.text.table import MIB_PER_GIB, age, screen_width, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.usage.groups import Usage
    from agent_sdk.usage.sums import UsageRow

HEAD: Final = ("LEASES", "RUNNING", "GPU-HOURS", "BUSY", "IDLE", "UNKNOWN", "ABOVE PEAK", "WAITS",
               "MEAN WAIT")  # fmt: skip

FINE_BELOW: Final = 10
"""Numbers from here on have one digit behind the point, smaller ones two."""

FORMULA: Final = re.compile(r"[=+]|[@-].*[^A-Za-z0-9._:@/-]")
"""Text that a spreadsheet computes: it begins with one of four signs, and is no agent's name."""

NONE: Final = "no lease had a GPU in this period"

GONE: Final = "nothing is known any more of this period"


def text_of(found: Usage) -> str:
    """Return the use as a table, with a row of totals, and with what limits it."""
    period = f"{found.first_day} to {found.last_day}, whole days of UTC"
    if found.total.running:
        period += f"; with what runs now, up to {short_utc(found.until_ms)}"
    all_gone = found.since_ms == found.until_ms
    if found.asked_ms < found.since_ms:
        which = "these" if all_gone else "earlier"
        period += f"\n{which} days are gone, as the policy's usage_days says"
    if not found.rows:
        return f"{GONE if all_gone else NONE}: {period}"
    priced, energy = bool(found.prices), bool(found.total.energy_mj)
    head = [*(word.upper() for word in found.by), *HEAD]
    head += ["KWH"] * energy + ["COST"] * priced
    rows = [
        [*(getattr(row, word) for word in found.by), *_cells(row, energy=energy, priced=priced)]
        for row in found.rows
    ]
    names = ["TOTAL", *[""] * (len(found.by) - 1)] if found.by else []
    if found.by:
        rows.append([*names, *_cells(found.total, energy=energy, priced=priced)])
    lines = [table(head, rows, width=screen_width(), gives=range(len(found.by))), "", period]
    if found.unpriced:
        lines.append(f"without a price, so at no cost: {', '.join(found.unpriced)}")
    return "\n".join(lines)


def _cells(row: UsageRow, *, energy: bool, priced: bool) -> list[str]:
    wait_s = row.mean_wait_s
    cells = [
        str(row.leases),
        str(row.running) if row.running else "-",
        hours(row.gpu_hours),
        _with_part(row.busy_gpu_hours, row.busy_share),
        hours(row.idle_gpu_hours),
        hours(row.unknown_gpu_hours),
        f"{amount(row.above_peak_mb_hours / MIB_PER_GIB)} GiB-h" if row.above_mb_ms else "-",
        str(row.waits) if row.waits else "-",
        age(round(wait_s * 1000)) if wait_s is not None else "-",
    ]
    if energy:
        cells.append(amount(row.energy_kwh) if row.energy_mj else "-")
    if priced:
        cells.append(f"{row.cost or 0:.2f}")
    return cells


def _with_part(number: float, part: float | None) -> str:
    return "-" if part is None else f"{hours(number)} ({part:.0%})"


def hours(number: float) -> str:
    """Return hours for people; none: `-`."""
    return amount(number) if number else "-"


def amount(number: float) -> str:
    """Return a number for people: `0.25`, `12.5`, `1234.5`."""
    return f"{number:.2f}" if number < FINE_BELOW else f"{number:.1f}"


def data_of(found: Usage) -> dict[str, Any]:
    """Return the use as data: its period, its rows and their total, with FIGURES by name."""
    return {
        "now_ms": found.now_ms,
        "since_ms": found.since_ms,
        "until_ms": found.until_ms,
        "first_day": found.first_day,
        "last_day": found.last_day,
        "by": list(found.by),
        "rows": [_named(row, found.by) for row in found.rows],
        "total": found.total.figures(),
        "prices": dict(found.prices),
        "unpriced": list(found.unpriced),
    }


def _named(row: UsageRow, by: Sequence[str]) -> dict[str, Any]:
    named = {word: getattr(row, word) for word in by}
    by_hour = {"gpu_hours_by_hour": [round(ms / 3_600_000, 6) for ms in row.hours]}
    return named | row.figures() | (by_hour if row.hours else {})


def csv_of(found: Usage) -> str:
    """Return the use as CSV: a line for each row, without the total."""
    return csv_text((*found.by, *FIGURES), [_named(row, found.by) for row in found.rows])


def csv_text(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with a head, without the last line's end; None is an empty cell.

    A row is one line: text is escaped where it does not print. A text that a spreadsheet would
    take for a formula has an apostrophe before it; no name of ours does, but a host names models.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _cell(x) if isinstance(x, str) else x for k, x in row.items()})
    return out.getvalue().rstrip("\n")


def _cell(text: str) -> str:
    said = printable(text)
    return f"'{said}" if FORMULA.match(said) else said
