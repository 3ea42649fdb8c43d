"""Processes of this machine, read from /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def pids() -> list[int]:
    """Return all present pids; none where there is no /proc."""
    with suppress(OSError):
        return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return []


def parents() -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield each living process with its parent and its process group."""
    for pid in pids():
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
            state, parent, group = stat.rpartition(")")[2].split()[:3]
            if state != "Z":
                yield pid, (int(parent), int(group))


def carries(pid: int, variable: str) -> bool:
    """Tell whether a process has `NAME=value` in its environment; False where we may not look."""
    with suppress(OSError):
        return variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False
