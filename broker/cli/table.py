"""Plain columns and short words for sizes and times."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "  "

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
MIB_PER_GIB = 1024


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns as wide as what is in them; nothing trails."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def gib(mb: int) -> str:
    """MiB as a person reads it."""
    return f"{mb} MiB" if mb < MIB_PER_GIB else f"{mb / MIB_PER_GIB:.1f} GiB"


def age(ms: int) -> str:
    """A time span as a person reads it, in the largest unit of which it is at least two."""
    seconds = max(0, ms) / 1000
    for unit, name in ((DAY_S, "days"), (HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
