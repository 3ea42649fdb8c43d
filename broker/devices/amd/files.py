"""Files of the kernel below a folder: `/` on a machine, another one for a machine's copy."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.devices.sample import number

if TYPE_CHECKING:
    from pathlib import Path

GONE = frozenset({errno.ENODEV, errno.ENXIO})
"""Errors of a device that is off the bus."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Unread:
    """File that cannot be read, with the error's number; 0: its text is no number."""

    error: int


def read(path: Path) -> str | Unread:
    """Return a file's text without the space around it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return Unread(error.errno or errno.EIO)


def told(path: Path) -> str:
    """Return a file's text; empty: it has none, or cannot be read."""
    text = read(path)
    return "" if isinstance(text, Unread) else text


def whole(path: Path, most: float = 1e18) -> int | None:
    """Return the number that a file tells; None: it tells none, or one that cannot be."""
    value = number(told(path), 0, most)
    return None if value is None else int(value)


def down_mb(size: int | None) -> int | None:
    """Return bytes as MiB, rounded down."""
    return None if size is None else size // MIB


def up_mb(size: int | None) -> int | None:
    """Return bytes as MiB, rounded up."""
    return None if size is None else -(-size // MIB)


def numbered(folder: Path) -> list[Path]:
    """List what a folder has under a number for a name, by number; empty: it cannot be listed."""
    try:
        found = [path for path in folder.iterdir() if path.name.isdecimal()]
    except OSError:
        return []
    return sorted(found, key=lambda path: int(path.name))


def properties(text: str) -> dict[str, int]:
    """Return the numbers of lines `name number`."""
    return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) (\d+)$", text, re.MULTILINE)}
