"""Signals as events to wait for, with a timeout, in any thread that the kernel picks."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, TracebackType
    from typing import Self

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
"""Signals that are passed on to the command."""

STOPPING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
"""Signals that end a process which has no command to pass them on to."""

CAUGHT = (*FORWARDED, signal.SIGCHLD, signal.SIGTSTP)

WAKE = 0
"""Number without a signal: the waiter only looks again."""


class Signals:
    """Block in which the caught signals are only noted; an ignored signal stays ignored.

    SIGCHLD is the exception: a process that ignores it never learns how a child ended.

    Attributes:
        unread: the signals that came before its end, and that no `wait` has returned.
    """

    unread: Sequence[signal.Signals] = ()

    def __enter__(self) -> Self:
        """Note signals from now on."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, _noted)
            for number in CAUGHT
            if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self.unread = self.wait(0)
        os.close(self._read)
        write, self._write = self._write, -1
        os.close(write)

    def fileno(self) -> int:
        """Return the descriptor, readable when a signal has come or `wake` was called."""
        return self._read

    def wake(self) -> None:
        """End a wait from another thread."""
        with suppress(OSError):  # full: it wakes anyway; closed: no thread waits
            os.write(self._write, bytes([WAKE]))

    def wait(self, seconds: float | None) -> list[signal.Signals]:
        """Return the signals of at most the next `seconds`; None: wait for one without limit."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        if not ready:
            return []
        return [signal.Signals(byte) for byte in os.read(self._read, 4096) if byte != WAKE]


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wake-up descriptor has the signal already."""


def leave_at_signals() -> None:
    """End at SIGTERM and SIGHUP as at Ctrl-C: the place in the queue is given up."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored: nohup asked for that
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
