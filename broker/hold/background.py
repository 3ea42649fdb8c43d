"""Keeper in the background: a fork of the command, which waits for its grant and then ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NoReturn

from broker.run.child import PR_SET_PDEATHSIG, prctl
from broker.run.guard import let_go_of_streams
from broker.run.signals import leave_at_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

PR_SET_NAME: Final = 15

NAME: Final = b"gpu-lease-keep"
"""Name of the process in `ps` and `top`; the kernel keeps 15 letters."""

MOST_BYTES: Final = 65536

DONE: Final = b"ok"

FAILED: Final = 1


class Handover:
    """Link from the keeper to the command that waits for it."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def tell(self, facts: dict[str, Any]) -> bool:
        """Tell the command of the lease, and go into the background once it has printed that.

        Returns:
            False: the command ended before.
        """
        prctl(PR_SET_PDEATHSIG, 0)  # from here on its end shows at the link
        with suppress(OSError):
            self._link.send(json.dumps(facts).encode())
            if self._link.recv(len(DONE)) == DONE:
                _into_background(self._link.fileno())
                return True
        return False


class NotKept(Exception):
    """Error of a keeper that ended without a lease, and has said why.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ForkedKeeper:
    """Keeper that was forked from this process; call this before any thread is started.

    Args:
        work: the keeper's work, which returns its exit code.
        stays_open: descriptors that it needs.

    Attributes:
        pid: the keeper's pid.
    """

    def __init__(self, work: Callable[[Handover], int], stays_open: Collection[int]) -> None:
        _open_streams()
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._link.close()
            _work(work, theirs, parent, stays_open)
        theirs.close()

    def granted(self) -> dict[str, Any]:
        """Wait for the grant, and return what the keeper tells of it.

        Raises:
            NotKept: there is none.
        """
        told = self._link.recv(MOST_BYTES)
        if not told:
            _, status = os.waitpid(self.pid, 0)
            raise NotKept(_code(os.waitstatus_to_exitcode(status)))
        facts: dict[str, Any] = json.loads(told)
        return facts | {"keeper_pid": self.pid}

    def confirm(self) -> None:
        """Let the keeper go on without us; without this call it gives the lease back."""
        with suppress(OSError):
            self._link.send(DONE)


def _open_streams() -> None:
    """Open the null device where a standard stream is closed: nothing else gets its number."""
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def _work(
    work: Callable[[Handover], int], link: socket.socket, parent: int, stays_open: Collection[int]
) -> NoReturn:
    """Work as the keeper; never return."""
    code = FAILED
    try:
        leave_at_signals()
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:
            _close_others({0, 1, 2, link.fileno(), *stays_open})
            code = work(Handover(link))
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else FAILED
    finally:
        os._exit(code)


def _close_others(stays_open: set[int]) -> None:
    """Close what was inherited, but the standard streams and these others.

    A pipe that stays open here never ends for its reader.
    """
    try:
        names = os.listdir("/proc/self/fd")  # noqa: PTH208 - names are numbers
    except OSError:  # a root without /proc
        for below, above in pairwise([*sorted(stays_open), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(below + 1, above)
        return
    for name in names:
        if int(name) not in stays_open:
            with suppress(OSError):
                os.close(int(name))


def _into_background(link: int) -> None:
    """Leave the terminal, its session and its folder."""
    os.setsid()
    os.chdir("/")
    let_go_of_streams(link)
    ctypes.CDLL(None).prctl(PR_SET_NAME, ctypes.c_char_p(NAME), 0, 0, 0)
