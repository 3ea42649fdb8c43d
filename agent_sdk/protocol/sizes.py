"""Sizes of GPU memory as people write them: `8GiB`, `8GB`, `8g`, `512MiB`, bare MiB.

As GPUs and schedulers count, G is 1024 M, with or without the `i`.
"""

from __future__ import annotations

import re
from typing import Final

FORM: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", re.ASCII)

MIB: Final = {
    unit: mb
    for letter, mb in {"m": 1, "g": 1024, "t": 1024 * 1024}.items()
    for unit in (letter, f"{letter}b", f"{letter}ib")
} | {"": 1}
"""MiB of each unit."""

EXAMPLES: Final = "8GiB, 512MiB, 8g, or a number of MiB"

FEW_MB: Final = 64
"""MiB below which no program on a GPU starts: more likely GiB were meant."""


def mebibytes(text: str) -> int | None:
    """Return a size as whole MiB, 0 for nothing alone; None: it is no size."""
    found = FORM.fullmatch(text.strip().lower())
    if found is None or found[2] not in MIB:
        return None
    memory_mb = float(found[1]) * MIB[found[2]]
    return max(1, round(memory_mb)) if memory_mb else 0


def has_unit(text: str) -> bool:
    """Tell whether a size has a unit."""
    return not text.strip()[-1:].isdecimal()


def meant_gib(memory_mb: int, way: str) -> str:
    """Ask whether GiB were meant by so few MiB; return an empty text if they suffice, or for 0.

    Args:
        memory_mb: as asked.
        way: the caller's form for GiB, with `{}` for the number.
    """
    if not 0 < memory_mb < FEW_MB:
        return ""
    return f"{memory_mb} MiB is very little: if GiB were meant, say {way.format(memory_mb)}"
