"""Which programs are behind the pids that a driver names, and who started them: from `/proc`.

A lease is registered with its holder's `pid:start time`. A container sees pids of its own, so the
innermost pid of each process is compared; its start, in clock ticks since boot, is the same inside.
"""

from __future__ import annotations

import pwd
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from broker.devices.sample import text

if TYPE_CHECKING:
    from collections.abc import Iterable

INITIAL_NAMESPACE = 0xEFFFFFFC
"""The inode of the pid namespace that a Linux host starts with."""

MOST_ANCESTORS = 64

MOST_LETTERS = 32
"""Of a name that is passed on; anybody may give a process any name."""

STARTED = 19
"""Where a process's start stands after its name in `/proc/<pid>/stat`; see proc(5)."""

_TOKEN = re.compile(rb"(?:^|\0)GPU_LEASE_TOKEN=([A-Za-z0-9._-]{16,64})(?:\0|$)")

Visibility = Literal["auto", "host", "none"]


@dataclass(frozen=True, slots=True)
class Program:
    """A process that lives.

    Attributes:
        start: when it started, in clock ticks since boot.
        user: whose it is: a name, else a number.
        token: of the lease in its environment, if we may read it; else empty.
        line: `pid:start` of it and of its ancestors, the nearest first; innermost pids.
    """

    pid: int
    start: int
    name: str
    user: str
    token: str
    line: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    start: int
    parent: int
    inner_pid: int
    name: str
    uid: int


class Programs:
    """Looks at processes under `proc`."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def unseen(self, wanted: Visibility) -> str:
        """Why a driver's pids are not to be found here, in a sentence; empty = they are."""
        if wanted == "none":
            return "GPU_BROKER_PROCESSES=none: nobody looks at processes"
        if wanted == "host":
            return ""
        try:
            inode = (self._proc / "self/ns/pid").stat().st_ino
        except OSError:
            return "this system has no /proc that tells of processes"
        if inode != INITIAL_NAMESPACE:
            return (
                "the reporter runs in a container that does not see the host's processes: run it "
                "with the host's pid namespace"
            )
        return ""

    def look(self, pids: Iterable[int]) -> dict[int, Program]:
        """Those of these processes that live and may be looked at."""
        known: dict[int, _Entry | None] = {}
        found = {pid: self._program(pid, known) for pid in set(pids)}
        return {pid: program for pid, program in found.items() if program is not None}

    def lives(self, registered: str) -> bool:
        """Whether a holder, as `pid:start`, is a process of this very namespace."""
        pid, _, start = registered.partition(":")
        if not pid.isdecimal() or not start.isdecimal():
            return False
        entry = self._read(int(pid))
        return entry is not None and entry.start == int(start)

    def _program(self, pid: int, known: dict[int, _Entry | None]) -> Program | None:
        line: list[str] = []
        at = pid
        first: _Entry | None = None
        while at > 0 and len(line) < MOST_ANCESTORS:
            if at not in known:
                known[at] = self._read(at)
            entry = known[at]
            if entry is None:
                break
            first = first or entry
            line.append(f"{entry.inner_pid}:{entry.start}")
            at = entry.parent
        if first is None:
            return None
        name, user = text(first.name)[:MOST_LETTERS], text(_user(first.uid))[:MOST_LETTERS]
        return Program(pid, first.start, name, user, self._token(pid), tuple(line))

    def _read(self, pid: int) -> _Entry | None:
        folder = self._proc / str(pid)
        try:
            stat = (folder / "stat").read_text("utf-8", errors="replace")
            status = (folder / "status").read_text("utf-8", errors="replace")
        except OSError:  # it is over, or hidden from us
            return None
        said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        words = stat.rpartition(")")[2].split()
        if len(words) <= STARTED or words[0] in {"Z", "X"}:
            return None
        name = stat[stat.find("(") + 1 : stat.rfind(")")]
        inner = said.get("NSpid", str(pid)).split()[-1]
        uid = said.get("Uid", "-1").split()[0]
        return _Entry(int(words[STARTED]), int(words[1]), int(inner), name, int(uid))

    def _token(self, pid: int) -> str:
        with suppress(OSError):  # another user's, or over
            if match := _TOKEN.search((self._proc / str(pid) / "environ").read_bytes()):
                return match[1].decode()
        return ""


@lru_cache(256)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid) if uid >= 0 else ""
