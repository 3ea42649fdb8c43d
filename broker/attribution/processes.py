"""Programs behind the pids that a driver names, and their ancestors, read from `/proc`.

A lease is registered with its holder's `pid:start time`. A container sees pids of its own, so the
innermost pid of each process is compared; its start, in clock ticks since boot, is the same inside.
"""

from __future__ import annotations

import os
import pwd
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent_sdk import evidence
from broker.devices.bounded_call import BoundedCall
from broker.devices.sample import text

if TYPE_CHECKING:
    from collections.abc import Iterable

INITIAL_NAMESPACE = 0xEFFFFFFC
"""Inode of the pid namespace that a Linux host starts with."""

MOST_ANCESTORS = 64

ENVIRON_S = 0.2
"""Most seconds that an environment is waited for, once; hardly any takes a millisecond."""

MOST_LETTERS = 32
"""Most letters of a passed-on name: any user may give a process any name."""

STARTED = 19
"""Place of the start time after the name in `/proc/<pid>/stat`; see proc(5)."""

MEMORY_FILE = f"/memfd:{evidence.NAME}"

_TOKEN = re.compile(rb"(?:^|\0)GPU_LEASE_TOKEN=([A-Za-z0-9._-]{16,64})(?:\0|$)")

Visibility = Literal["auto", "host", "none"]


@dataclass(frozen=True, slots=True)
class Program:
    """Living process.

    Attributes:
        start: its start, in clock ticks since boot.
        user: its user's name, else number.
        token: the lease's token in its environment, if we may read it; else empty.
        line: `pid:start` of it and of its ancestors, the nearest first; innermost pids.
        pids: the same processes by this system's pids.
        inherited: tokens in those environments of its ancestors that we may read.
    """

    pid: int
    start: int
    name: str
    user: str
    token: str
    line: tuple[str, ...]
    pids: tuple[int, ...]
    inherited: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Entry:
    start: int
    parent: int
    inner_pid: int
    name: str
    uid: int


class Programs:
    """Reader of processes under `proc`.

    The environment of a process that is stuck in its memory's lock does not end to be read: `look`,
    which reads those of all, needs a thread of its own; the other calls wait `ENVIRON_S` at most.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._asked: dict[tuple[int, int], BoundedCall[str]] = {}

    def unseen(self, wanted: Visibility) -> str:
        """Return the reason for which a driver's pids cannot be found here; empty: they can."""
        if wanted == "none":
            return "GPU_BROKER_PROCESSES=none: this host's processes are not looked at"
        if self._hidden():
            return (
                "other users' processes are hidden from the reporter (hidepid, ProtectProc): "
                "deploy/systemd/README.md says how to let it see them"
            )
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

    def _hidden(self) -> bool:
        """Tell whether this /proc shows our own user's processes alone; pid 1 is root's."""
        try:
            (self._proc / "1/stat").read_bytes()
        except OSError:
            return (self._proc / "self/stat").exists()
        return False

    def look(self, pids: Iterable[int]) -> dict[int, Program]:
        """Return those of these processes that live and are readable."""
        known: dict[int, tuple[_Entry, str] | None] = {}
        found = {pid: self._program(pid, known) for pid in set(pids)}
        return {pid: program for pid, program in found.items() if program is not None}

    def values_of(self, name: str, variable: str) -> tuple[str | None, ...]:
        """Return a variable's value in each process whose name begins so; None: it tells none."""
        found = []
        for folder in self._proc.glob("[0-9]*"):
            try:
                named = (folder / "comm").read_text("utf-8", errors="replace")
            except OSError:  # ended
                continue
            if named.startswith(name):
                found.append(self._variable(folder, variable))
        return tuple(found)

    def _variable(self, folder: Path, name: str) -> str | None:
        with suppress(OSError):  # another user's, or ended
            for pair in (folder / "environ").read_bytes().split(b"\0"):
                if pair.startswith(f"{name}=".encode()):
                    return text(pair.partition(b"=")[2])
        return None

    def lives(self, registered: str) -> bool:
        """Return whether a holder, as `pid:start`, is a living process of this very namespace."""
        pid, _, start = registered.partition(":")
        if not pid.isdecimal() or not start.isdecimal():
            return False
        entry = self._read(int(pid))
        return entry is not None and entry.start == int(start)

    def evidence(self, pid: int, start: int, token: str) -> bool | None:
        """Tell whether a process shows that it holds a lease; None: we cannot look into it.

        It does by the token in its environment or in the file that the SDK keeps open, which must
        be its own user's or root's: a descriptor can be handed to a process that did not ask.
        """
        entry = self._read(pid)
        if entry is None or entry.start != start:
            return False
        shown = self._shown(pid, entry, token)
        if shown:
            return True
        named = self._named(pid, start)
        return True if named == token else None if named is None else shown

    def _shown(self, pid: int, entry: _Entry, token: str) -> bool | None:
        try:
            files = [*(self._proc / str(pid) / "fd").iterdir()]
        except PermissionError:
            return None
        except OSError:
            return False
        return any(_shows(file, token, {0, entry.uid}) for file in files)

    def _named(self, pid: int, start: int) -> str | None:
        """Return the token in a process's environment; None: it cannot be read, or not in time."""
        call = self._asked.pop((pid, start), None)
        new = call is None
        call = call or BoundedCall(lambda: self._token(pid), "environ")
        if call.answered_within(ENVIRON_S if new else 0):
            with suppress(RuntimeError):  # no thread can be had
                return call.answer()
            return None
        self._asked = {key: each for key, each in self._asked.items() if each.running}
        self._asked[pid, start] = call
        return None

    def adopts(self, holder: str, token: str, pid: int, process: str) -> bool:
        """Tell whether a lease's holder, as `pid:start`, shows that the lease is for a process.

        Args:
            holder: it must be of the process's own user, or root's.
            token: the lease.
            pid: the process, by this system's pid.
            process: the same as `pid:start`.
        """
        number, _, start = holder.partition(":")
        if not number.isdecimal() or not start.isdecimal():
            return False
        ours, theirs = self._read(int(number)), self._read(pid)
        if ours is None or ours.start != int(start):
            return False
        if theirs is None or ours.uid not in {0, theirs.uid}:
            return False
        return self._shown(int(number), ours, f"{token} {process}") is True

    def _program(self, pid: int, known: dict[int, tuple[_Entry, str] | None]) -> Program | None:
        entries: list[_Entry] = []
        tokens: list[str] = []
        pids: list[int] = []
        at = pid
        while at > 0 and len(pids) < MOST_ANCESTORS:
            if at not in known:
                entry = self._read(at)
                known[at] = None if entry is None else (entry, self._token(at))
            both = known[at]
            if both is None:
                break
            entries.append(both[0])
            tokens.append(both[1])
            pids.append(at)
            at = both[0].parent
        if not entries:
            return None
        first = entries[0]
        return Program(
            pid,
            first.start,
            text(first.name)[:MOST_LETTERS],
            text(_user(first.uid))[:MOST_LETTERS],
            tokens[0],
            tuple(f"{entry.inner_pid}:{entry.start}" for entry in entries),
            tuple(pids),
            frozenset(tokens[1:]) - {""},
        )

    def _read(self, pid: int) -> _Entry | None:
        folder = self._proc / str(pid)
        try:
            stat = (folder / "stat").read_text("utf-8", errors="replace")
            status = (folder / "status").read_text("utf-8", errors="replace")
        except OSError:  # ended, or hidden from us
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
        with suppress(OSError):  # another user's, or ended
            if match := _TOKEN.search((self._proc / str(pid) / "environ").read_bytes()):
                return match[1].decode()
        return ""


def _shows(file: Path, token: str, owners: set[int]) -> bool:
    """Tell whether an open file of a process is the SDK's, and shows a token."""
    try:
        if not os.readlink(file).startswith(MEMORY_FILE):  # noqa: PTH115 - a Path costs more
            return False
        with file.open("rb") as content:
            if os.fstat(content.fileno()).st_uid not in owners:
                return False
            return evidence.shows(content.read(evidence.SLOTS * evidence.DIGEST_BYTES), token)
    except OSError:  # closed meanwhile
        return False


@lru_cache(256)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid) if uid >= 0 else ""
