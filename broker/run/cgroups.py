"""Names of cgroups whose GPU memory the driver is to limit: an agreement of holder and reporter.

A holder asks for a limit by living in such a cgroup; its reporter finds it there.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

PREFIX: Final = "gpu-broker-run-"

NAME: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_.-]{{1,64}}")
"""Name of a cgroup with a limit; a systemd scope's ends in `.scope`."""


class Place(NamedTuple):
    """Place of a process in the tree of cgroups of version 2.

    Attributes:
        root: where the tree is mounted.
        path: the process's cgroup below it, as `/a/b`.
    """

    root: Path
    path: str

    @property
    def folder(self) -> Path:
        """Folder of the cgroup."""
        return self.root / self.path.lstrip("/")

    @property
    def asks(self) -> bool:
        """True if the name asks for a limit."""
        return NAME.fullmatch(self.path.rpartition("/")[2]) is not None

    def holds(self, other: Place) -> bool:
        """Tell whether the other process is in this cgroup, or below it."""
        return f"{other.path}/".startswith(f"{self.path}/")


def place_of(pid: int | None = None, proc: Path = Path("/proc")) -> Place | None:
    """Return the place of a process, None: of this one; None where there is no cgroup v2."""
    try:
        told = Path(proc, "self" if pid is None else str(pid), "cgroup").read_bytes()
    except OSError:
        return None
    cgroups = told.decode(errors="replace").splitlines()
    path = next((line[3:] for line in cgroups if line.startswith("0::/")), None)
    root = _root(proc)
    if root is None or path is None or path.startswith("/.."):  # outside of our own namespace
        return None
    return Place(root, path.removesuffix(" (deleted)"))


@cache
def _root(proc: Path) -> Path | None:
    """Return where the tree of version 2 is mounted; that stays so."""
    try:
        mounts = (proc / "self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((Path(m.split()[4]) for m in mounts if " - cgroup2 " in m), None)
