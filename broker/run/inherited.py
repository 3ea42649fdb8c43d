"""Signal settings that `gpu-broker run` inherits and passes on, as `env` does.

A parent may block signals or ignore them, and both pass through exec. We must get the blocked
ones ourselves, and Python ignores some for its own sake.
"""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.run.signals import CAUGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals with an inherited setting that the interpreter forgets at its start."""

PASS_ON: Final = {
    "ash", "bash", "busybox", "dash", "env", "ksh", "mksh", "nice", "nohup", "setsid", "sh",
    "stdbuf", "systemd", "timeout", "zsh",
}  # fmt: skip
"""Programs that pass the signals they ignore on to their children."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """Signal settings before we changed any.

    Attributes:
        blocked: signals that the parent blocked.
        ignored: signals that the parent ignored and we do not, or Python ignores for all programs.
        heeded: signals that the parent did not ignore and we do, or Python does.
        pid: our pid, for variables that name the process that they are meant for.
    """

    blocked: frozenset[signal.Signals]
    ignored: frozenset[signal.Signals]
    heeded: frozenset[signal.Signals]
    pid: int

    def restore(self) -> None:
        """Restore the signal settings; call this in the child before the command."""
        for number in self.heeded:
            signal.signal(number, signal.SIG_DFL)
        for number in self.ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked)

    def env(self, env: Mapping[str, str], pid: int) -> dict[str, str] | None:
        """Return the environment for a command of that pid; None: its own environment is right.

        systemd's sockets are for the process that LISTEN_PID names: with `env` that is us.
        """
        if env.get("LISTEN_PID") != str(self.pid):
            return None
        return {**env, "LISTEN_PID": str(pid)}


def take_over() -> Inherited:
    """Note the signal settings, and unblock all that we catch; before any thread is started."""
    ignored = {signal.Signals(n) for n in IGNORED_BY_PYTHON if _parent_ignores(n)}
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        ignored.add(signal.SIGCHLD)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # We write to the terminal and set it from the background: a stop would end the renewals.
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    heeded = {signal.Signals(number) for number in IGNORED_BY_PYTHON} - ignored
    if before is not signal.SIG_IGN:
        heeded.add(signal.SIGTTOU)
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
    was_blocked = frozenset(map(signal.Signals, blocked))
    return Inherited(was_blocked, frozenset(ignored), frozenset(heeded), os.getpid())


def _parent_ignores(number: signal.Signals) -> bool:
    """Tell whether our parent ignores a signal and is a program that passes this on."""
    folder = Path(f"/proc/{os.getppid()}")
    with suppress(OSError, ValueError):
        if (folder / "comm").read_text("utf-8", "replace").strip().lstrip("-") in PASS_ON:
            lines = (folder / "status").read_text("utf-8", "replace").splitlines()
            (mask,) = (line.split()[1] for line in lines if line.startswith("SigIgn:"))
            return bool(int(mask, 16) >> (number - 1) & 1)
    return False


def die_of(number: signal.Signals, *, group: bool) -> None:
    """End ourselves by the command's signal: a script that waits for us then ends at Ctrl-C too.

    Args:
        number: the signal.
        group: send it to our whole process group, which did not get it.
    """
    if signal.getsignal(number) is signal.SIG_IGN:
        return
    with suppress(OSError, ValueError):  # write no core file: the command may have written one
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(number, signal.SIG_DFL)
    if group:
        os.killpg(0, number)
    os.kill(os.getpid(), number)
