"""Plain columns, bars, and short words for sizes and times."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Final

from broker.text.screen import bare, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "  "

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
MIB_PER_GIB = 1024

NARROWEST: Final = 8
"""Fewest letters of a column that gives way."""

INDEX: Final = 3
"""Most digits of a GPU's index."""


def screen_width() -> int | None:
    """Return the columns of the terminal; None: stdout is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    gives: Sequence[int] = (),
) -> str:
    """Return left-aligned columns as wide as their cells, without trailing spaces.

    Args:
        head: the heading of each column.
        rows: cells, which may be coloured.
        width: the limit of a line, as far as the columns that give way allow; None: no limit.
        gives: columns that are cut to fit, the first of them first.
    """
    lines = [[one_line(cell) for cell in line] for line in (head, *rows)]
    widths = [max(len(bare(line[i])) for line in lines) for i in range(len(head))]
    if width is not None:
        over = sum(widths) + len(GAP) * (len(widths) - 1) - width
        for i in gives:
            given = max(0, min(over, widths[i] - NARROWEST))
            widths[i] -= given
            over -= given
    return "\n".join(
        GAP.join(_fit(cell, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines
    )


def _fit(cell: str, width: int) -> str:
    return cut(cell, width) + " " * (width - len(bare(cell)))


def cut(text: str, width: int) -> str:
    """Cut the text to `width` letters; it loses its colour, but not its GPU's index."""
    plain = bare(text)
    if len(plain) <= width:
        return text
    head, _, index = plain.rpartition(":")
    end = f":{index}" if head and index.isdecimal() and len(index) <= INDEX else ""
    return f"{plain[: max(0, width - 1 - len(end))]}…{end}"[:width]


def bar(parts: Sequence[tuple[str, int]], total: int, width: int) -> str:
    """Return letters in proportion to their shares of a total, and dots for the rest."""
    filled, shares = "", 0
    for letter, share in parts:
        shares += share
        end = round(width * min(1.0, shares / max(1, total)))
        filled += letter * (end - len(filled))
    return filled.ljust(width, "·")


def gib(mb: int) -> str:
    """Return MiB as text for people."""
    return f"{mb} MiB" if mb < MIB_PER_GIB else f"{mb / MIB_PER_GIB:.1f} GiB"


def many(count: int, one: str, more: str) -> str:
    """Return a count with its noun: `1 device`, `2 devices`."""
    return f"{count} {one if count == 1 else more}"


def some(names: Sequence[str], most: int = 4) -> str:
    """Name a few, and count the others: `vm:0 vm:1 and 6 more`."""
    more = len(names) - most
    return " ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def age(ms: int) -> str:
    """Return a time span as text for people, in the largest unit that fits twice."""
    seconds = max(0, ms) / 1000
    for unit, name in ((DAY_S, "days"), (HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
