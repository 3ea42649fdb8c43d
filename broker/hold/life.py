"""Life of a process of this machine: its end is noticed, and none that reuses its number counts."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Final

from broker.identity import PROC, start_of

POLL_S: Final = 0.5
"""Seconds between two looks where the kernel gives no descriptor of a process."""

MOST_SUBSHELLS: Final = 16


class ProcessLife:
    """Life of one process, by a descriptor (pidfd) that stays its own.

    Args:
        pid: of a living process.

    Attributes:
        start: its start, in clock ticks since boot.
        process: the process as `pid:start`, which no other process shares. The pid is that of its
            innermost namespace, as a host's reporter compares it.

    Raises:
        ProcessLookupError: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._start = start_of(PROC, str(pid))
        self.start = int(self._start or 0)
        self._descriptor = _descriptor(pid)
        if not self._start or self.over:
            raise ProcessLookupError(pid)
        self.process = f"{_innermost(pid)}:{self._start}"

    @property
    def over(self) -> bool:
        """True once the process has ended, also while its parent has not reaped it."""
        if self._descriptor is None:
            return start_of(PROC, str(self.pid)) != self._start
        return bool(select.select([self._descriptor], [], [], 0)[0])

    @property
    def descriptors(self) -> set[int]:
        """Descriptors that must stay open."""
        return set() if self._descriptor is None else {self._descriptor}

    def end_ours_with(self) -> None:
        """Send ourselves SIGTERM once the process has ended."""

        def watch() -> None:
            while not self.over:
                if self._descriptor is None:
                    time.sleep(POLL_S)
                else:
                    select.select([self._descriptor], [], [])
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="gpu-lease-life", daemon=True).start()


def _descriptor(pid: int) -> int | None:
    """Return a pidfd; None: an old kernel or a sandbox has none, and /proc is looked at."""
    try:
        found = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
    above = fcntl.fcntl(found, fcntl.F_DUPFD_CLOEXEC, 3)  # a closed stdin left its number to it
    os.close(found)
    return above


def _innermost(pid: int) -> str:
    for line in (PROC / str(pid) / "status").read_text("utf-8", "replace").splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1]
    return str(pid)


def calling_shell() -> int:
    """Return the process that called us, past the subshell of a `$(...)`, which ends with us.

    A subshell is a fork of its shell: it runs the same program with the same words, in a process
    group that is not its own.
    """
    pid = os.getppid()
    for _ in range(MOST_SUBSHELLS):
        parent, group = _parent_and_group(pid)
        if parent <= 1 or group == pid or _words(parent) != _words(pid):
            break
        pid = parent
    return pid


def _parent_and_group(pid: int) -> tuple[int, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0, 0
    _, parent, group, *_ = stat.rpartition(")")[2].split()
    return int(parent), int(group)


def _words(pid: int) -> tuple[str, bytes]:
    """Return the program of a process and the words that it was started with."""
    try:
        folder = PROC / str(pid)
        return str((folder / "exe").readlink()), (folder / "cmdline").read_bytes()
    except OSError:
        return str(pid), b""
