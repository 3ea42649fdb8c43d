"""Known holes of servers by their version: a reason for a warning, never for a refusal.

Distributions mend a version without changing its number, so the number proves nothing; SECURITY.md
has the table for people.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

Series = tuple[int, int]

REDIS_HOLE: Final = "CVE-2026-81934 (use after free, without a login where TLS is on)"

MENDED_REDIS: Final[Mapping[Series, int]] = {
    (6, 2): 24, (7, 2): 16, (7, 4): 11, (8, 2): 9, (8, 4): 6, (8, 6): 6, (8, 8): 2, (8, 10): 1,
}  # fmt: skip
"""First patch of each series of Redis without the newest known hole."""

VALKEY_HOLES: Final = "CVE-2026-56684 and CVE-2026-63639 (use after free, corrupt streams)"

MENDED_VALKEY: Final[Mapping[Series, int]] = {
    (7, 2): 14, (8, 0): 10, (8, 1): 9, (9, 0): 5, (9, 1): 1,
}  # fmt: skip
"""First patch of each series of Valkey without the newest known holes."""


def advisory(info: Mapping[str, Any]) -> str | None:
    """Return a sentence about holes in the version that INFO tells; None: none is known."""
    valkey = info.get("valkey_version")
    name, holes, mended = (
        ("Valkey", VALKEY_HOLES, MENDED_VALKEY) if valkey else ("Redis", REDIS_HOLE, MENDED_REDIS)
    )
    said = str(valkey or info.get("redis_version", ""))
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        return None
    series, patch = (int(found[1]), int(found[2])), int(found[3])
    if series > max(mended) or patch >= mended.get(series, patch + 1):
        return None
    least = mended.get(series)
    first = f"{series[0]}.{series[1]}.{least}" if least is not None else _next(series, mended)
    return f"{name} {said} may have {holes}, which {name} {first} has not"


def _next(series: Series, mended: Mapping[Series, int]) -> str:
    """Return the first mended version after a series that is mended no more."""
    later = min(each for each in mended if each > series)
    return f"{later[0]}.{later[1]}.{mended[later]}"
