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
"""Letters that a column keeps when it gives way."""

INDEX: Final = 3
"""Digits that the index of a GPU has at most."""


def screen_width() -> int | None:
    """Columns of the terminal; None when nobody looks at one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    gives: Sequence[int] = (),
) -> str:
    """Left-aligned columns as wide as what is in them; nothing trails.

    Args:
        head: over each column.
        rows: cells, which may be coloured.
        width: no line is longer, as far as the columns that give way allow it; None: any length.
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
    """Return the text, no longer than so; what is cut loses its colour, but not its GPU's index."""
    plain = bare(text)
    if len(plain) <= width:
        return text
    head, _, index = plain.rpartition(":")
    end = f":{index}" if head and index.isdecimal() and len(index) <= INDEX else ""
    return f"{plain[: max(0, width - 1 - len(end))]}…{end}"[:width]


def bar(parts: Sequence[tuple[str, int]], total: int, width: int) -> str:
    """Letters in the proportion of their shares of a total; what no part has is a dot."""
    filled, shares = "", 0
    for letter, share in parts:
        shares += share
        end = round(width * min(1.0, shares / max(1, total)))
        filled += letter * (end - len(filled))
    return filled.ljust(width, "·")


def gib(mb: int) -> str:
    """Return the MiB as a person reads it."""
    return f"{mb} MiB" if mb < MIB_PER_GIB else f"{mb / MIB_PER_GIB:.1f} GiB"


def many(count: int, one: str, more: str) -> str:
    """So many of them: `1 device`, `2 devices`."""
    return f"{count} {one if count == 1 else more}"


def age(ms: int) -> str:
    """Return a time span as a person reads it, in the largest unit of which it is at least two."""
    seconds = max(0, ms) / 1000
    for unit, name in ((DAY_S, "days"), (HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
