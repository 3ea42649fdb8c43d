"""A command in a process group of its own that does not outlive us.

Two things see to that when we are killed without a word: the kernel sends the command SIGKILL when
its parent dies, and a guard, a shell that waits for the end of a pipe of ours, kills the whole
group, so that what the command started goes too. What leaves the group (setsid) is not followed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

_libc = ctypes.CDLL(None)

TERMINAL_STOPS = (signal.SIGTTIN, signal.SIGTTOU)
"""It wants to read from the terminal, or to set it, and is in the background."""

GUARD = 'read -r group && { read -r done || kill -s KILL -- "-$group"; }'
"""Reads the group, then a line when all is well; the end of the pipe without one is our death."""


class Child:
    """The command, running.

    Args:
        command: what to run, and its arguments.
        env: its environment.
        guard: who ends its group when we cannot.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], guard: Guard) -> None:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._process = subprocess.Popen(  # noqa: S603 - what our user told us to run
            command,
            env=env,
            process_group=0,
            preexec_fn=_bind(os.getpid(), guard.pipe),  # noqa: PLW1509 - system calls alone
        )
        self.pid = self._process.pid
        self._terminal: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal to the command and all that is in its group.

        What runs as another user by now (sudo) does not hear it: it is waited for.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    @property
    def group_lives(self) -> bool:
        """Whether anything of its group is still there; ask once the command has ended."""
        with suppress(ChildProcessError):  # its orphans are our children: bury the dead
            while os.waitpid(-self.pid, os.WNOHANG) != (0, 0):
                pass
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's, and alive
            return True
        return True

    def look(self) -> tuple[int | None, bool]:
        """How it stands, without waiting.

        Returns:
            Its exit code, 128 + the signal's number if one ended it, None while it lives; and
            whether it was stopped by Ctrl-Z. One that was stopped for want of the terminal has it
            now and goes on.
        """
        if self._process.returncode is not None:
            return _code(self._process.returncode), False
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return None, False
        if os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) in TERMINAL_STOPS:
                if self._give_terminal():
                    self.signal(signal.SIGCONT)
                return None, False  # in the background it waits for `fg`, as it would without us
            return None, os.WSTOPSIG(status) == signal.SIGTSTP
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._take_terminal()
        return _code(self._process.returncode), False

    def _give_terminal(self) -> bool:
        """Make it the terminal's foreground, as a shell does, if that is ours to give."""
        with suppress(OSError):  # there is no terminal
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
            if os.tcgetpgrp(terminal) == os.getpgrp():
                _set_foreground(terminal, self.pid)
                self._terminal = terminal
                return True
            os.close(terminal)
        return False

    def _take_terminal(self) -> None:
        if self._terminal is not None:
            with suppress(OSError):
                _set_foreground(self._terminal, os.getpgrp())
            os.close(self._terminal)
            self._terminal = None


class Guard:
    """Within its block our death is the end of the group that a child has written to `pipe`."""

    def __enter__(self) -> Self:
        """Start the shell that waits for our death."""
        read, self.pipe = os.pipe()
        try:
            self._shell = subprocess.Popen(  # noqa: S603 - words of our own
                ["/bin/sh", "-c", GUARD], stdin=read, start_new_session=True
            )
        except OSError:
            os.close(self.pipe)
            raise
        finally:
            os.close(read)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send it home."""
        with suppress(BrokenPipeError):  # somebody killed it
            os.write(self.pipe, b"done\n")
        os.close(self.pipe)
        self._shell.wait()


def _bind(parent: int, guard_pipe: int) -> Callable[[], None]:
    """To run in the child before the command: its parent's death is its own, and its group's."""

    def before_exec() -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(BrokenPipeError):
            os.write(guard_pipe, b"%d\n" % os.getpid())
        if os.getppid() != parent:  # it died before we could say so
            os.kill(os.getpid(), signal.SIGKILL)

    return before_exec


def _prctl(what: int, value: int) -> None:
    _libc.prctl(what, ctypes.c_ulong(value), 0, 0, 0)


def _set_foreground(terminal: int, group: int) -> None:
    """Needs SIGTTOU ignored when we are in the background ourselves."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(terminal, group)
    finally:
        signal.signal(signal.SIGTTOU, before)


def _code(returncode: int) -> int:
    """As a shell says it: 128 + the signal's number when one ended it."""
    return 128 - returncode if returncode < 0 else returncode
