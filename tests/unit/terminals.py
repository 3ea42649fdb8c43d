"""A person's terminal: a program in its foreground, and what the person reads and types."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHIN_S = 60
"""For what takes a second on a machine that does nothing else."""


class Terminal:
    """The screen and keyboard of a person.

    Attributes:
        seen: everything that was shown.
        rest: the part of it after the text of the last `until`.
    """

    def __init__(self, pid: int, master: int) -> None:
        self.pid, self._master = pid, master
        self.seen = self.rest = ""

    def _read(self) -> bool:
        """Read what is shown within a moment; False: the terminal hung up."""
        if select.select([self._master], [], [], 0.05)[0]:
            try:
                more = os.read(self._master, 65536).decode()
            except OSError:
                return False
            self.seen += more
            self.rest += more
        return True

    def until(self, text: str, within_s: float = WITHIN_S) -> None:
        """Read until this is shown."""
        until = time.monotonic() + within_s
        while text not in self.rest:
            assert time.monotonic() < until, f"{text!r} not in {self.rest!r}"
            assert self._read() or text in self.rest, self.rest
        self.rest = self.rest.partition(text)[2]

    def type(self, text: str) -> None:
        """Write as if from the keyboard."""
        os.write(self._master, text.encode())

    def size(self, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def end(self) -> int:
        """Wait for the end, and return it as `Popen.returncode` has it."""
        until = time.monotonic() + WITHIN_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < until, f"it did not end: {self.seen!r}"
            self._read()


@contextmanager
def terminal(settings: dict[str, str], *words: str) -> Iterator[Terminal]:
    """Run a program in the foreground of a terminal of its own; it is killed at the end."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe(words[0], list(words), settings)
    try:
        yield Terminal(pid, master)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(master)
