"""Command in a process group of its own that does not outlive us.

When we are killed without warning, the kernel sends the command SIGKILL, and the guard ends the
rest. A process that the command started and abandons becomes our child: it is reaped when it
ends, and ended after the command.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.run.processes import parents
from broker.run.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.run.guard import Guard
    from broker.run.inherited import Inherited

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

_libc = ctypes.CDLL(None)

BINARY_BYTES: Final = 128
"""First bytes of a program, of which one is 0 where it is no text."""

TERMINAL_STOPS = (signal.SIGTTIN, signal.SIGTTOU)
"""Signals that stop a background command which reads the terminal or sets it."""


class Beside:
    """Process that runs beside the command, in a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def runs(self) -> bool:
        """True until it has ended."""
        return self._process.poll() is None

    @property
    def code(self) -> int:
        """Its exit code, 128 + the number of a signal that ended it."""
        return _code(self._process.wait())

    def signal(self, number: int) -> None:
        """Send a signal to its whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class Child:
    """Running command.

    Args:
        command: the program and its arguments.
        env: its environment, with the lease's token.
        guard: the process that ends the command when we cannot.
        inherited: the signal settings with which we were started.

    Attributes:
        pid: its pid, and the number of its process group.
        stopped: True while it is stopped: by Ctrl-Z, by SIGSTOP, or waiting for the terminal.
        interrupted: the signal of a terminal that ended it, as it would have ended us.
        had_terminal: True if it was in the foreground: that signal went to its group alone.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], guard: Guard, inherited: Inherited
    ) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._guard, self._inherited, self._terminal = guard, inherited, Terminal()
        self._beside: Beside | None = None
        try:
            self._process = self._started(command, env)
        except OSError as error:
            if error.errno != errno.ENOEXEC or not (script := _script(command[0], env)):
                raise
            self._process = self._started(["/bin/sh", script, *command[1:]], env)
        self.pid = self._process.pid
        self.stopped = False
        self.interrupted: signal.Signals | None = None
        self.had_terminal = False
        self._wants_terminal = False
        self._offer_terminal()

    def _started(self, words: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - the user's command
            words,
            env=env,
            process_group=0,
            restore_signals=False,  # before_exec does: a write to a dead guard must not raise here
            close_fds=False,  # exec closes what we open; what we inherited is the command's
            preexec_fn=_before_exec(words, env, self._guard, self._inherited),  # noqa: PLW1509 - calls alone
        )

    def start_beside(self, words: Sequence[str], env: Mapping[str, str]) -> Beside | None:
        """Start a process that ends with us, as the command does; None: it cannot be started."""
        try:
            process = self._started(words, env)
        except OSError:
            return None
        self._beside = Beside(process)
        return self._beside

    def signal(self, number: int) -> None:
        """Send a signal to the command and its whole group.

        A process that runs as another user by now (sudo) does not get it: we wait for its end.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def signal_alone(self, number: int) -> None:
        """Send a signal to the command and to none of its children, which may not expect it."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, number)

    def signal_rest(self, number: int) -> None:
        """Send a signal to the command's leftovers: its group, and processes that left it."""
        self.signal(number)
        for pid in self._adopted():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def terminate(self, grace_s: float) -> None:  # noqa: ARG002 - an engine is told the grace
        """Ask the command and its whole group to end, also a stopped one."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the command and its whole group by SIGKILL."""
        self.signal(signal.SIGKILL)

    def terminate_rest(self, grace_s: float) -> None:  # noqa: ARG002 - see `terminate`
        """Ask the command's leftovers to end."""
        self.signal_rest(signal.SIGTERM)
        self.signal_rest(signal.SIGCONT)

    def kill_rest(self) -> None:
        """End the command's leftovers by SIGKILL."""
        self.signal_rest(signal.SIGKILL)

    @property
    def rest_lives(self) -> bool:
        """True if any process of the command is left; ask once the command has ended."""
        self._bury()
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return bool(self._adopted())
        except PermissionError:  # another user's, and alive
            return True
        return True

    @property
    def waits_for_terminal(self) -> bool:
        """True if the command may get the terminal later: look again soon."""
        return self._terminal.to_be_given

    def look(self) -> tuple[int | None, bool]:
        """Return the command's state, without waiting.

        Returns:
            Its exit code, 128 + the number of a signal that ended it, None while it lives; and
            whether Ctrl-Z stopped it. A command that was stopped for want of the terminal gets
            the terminal and goes on.
        """
        stopped_by = 0
        while self._process.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                break
            if os.WIFSTOPPED(status):
                self.stopped, stopped_by = True, os.WSTOPSIG(status)
                self._wants_terminal = stopped_by in TERMINAL_STOPS
            elif os.WIFCONTINUED(status):
                self.stopped = self._wants_terminal = False
            else:
                self._ended(os.waitstatus_to_exitcode(status))
        self._bury()
        if self._process.returncode is not None:
            return _code(self._process.returncode), False
        self._offer_terminal()
        return None, self.stopped and stopped_by == signal.SIGTSTP

    def _offer_terminal(self) -> None:
        """Give the command the terminal if it waits for it, or no other process could want it."""
        given = self._terminal.given
        if self._wants_terminal:
            # In the background the command waits for `fg`, as it would without us.
            given = given or self._terminal.give(self.pid)
        elif not given:
            given = self._terminal.give_if_alone(self.pid)
        else:
            return
        if given:  # also to its children: they may have read too early, and be stopped
            self.signal(signal.SIGCONT)

    def _ended(self, returncode: int) -> None:
        self._process.returncode = returncode
        if -returncode in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            self.interrupted = signal.Signals(-returncode)
        self.had_terminal = self._terminal.given
        self._terminal.take()
        self._terminal.close()

    def _adopted(self) -> list[int]:
        """Return our children except the guard."""
        us = os.getpid()
        return [pid for pid, (parent, _) in parents() if parent == us and pid != self._guard.pid]

    def _bury(self) -> None:
        """Reap our ended children except the command: its exit code is asked for later."""
        with suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid == self.pid and self._process.returncode is None:
                    return
                if self._beside is not None and dead.si_pid == self._beside.pid:
                    if self._beside.runs:
                        return
                    continue
                os.waitpid(dead.si_pid, os.WNOHANG)


def _before_exec(
    command: Sequence[str], env: Mapping[str, str], guard: Guard, inherited: Inherited
) -> Callable[[], None]:
    """Return the code to run in the child before exec: the command shall not outlive us."""
    parent = os.getpid()

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        guard.watch(os.getpid(), env["GPU_LEASE_TOKEN"])
        if os.getppid() != parent:  # the parent died before we could ask for its death signal
            os.kill(os.getpid(), signal.SIGKILL)
        inherited.restore()
        own_env = inherited.env(env, os.getpid())
        if own_env is not None:
            with suppress(OSError):  # Popen's own exec gives the reason
                os.execvpe(command[0], list(command), own_env)  # noqa: S606 - the user's command

    return before_exec


def _script(name: str, env: Mapping[str, str]) -> str:
    """Return the path of a program that is a text without `#!`, as a shell runs it; else empty."""
    with suppress(OSError):
        path = shutil.which(name, path=env.get("PATH")) or name
        with Path(path).open("rb") as file:
            return "" if b"\0" in file.read(BINARY_BYTES) else path
    return ""


def prctl(what: int, value: int) -> None:
    """Set an attribute of this process, by the system call of that name."""
    _libc.prctl(what, ctypes.c_ulong(value), 0, 0, 0)


def _code(returncode: int) -> int:
    """Return the exit code as a shell gives it: 128 + the number of a signal that ended it."""
    return 128 - returncode if returncode < 0 else returncode
