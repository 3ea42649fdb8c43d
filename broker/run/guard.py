"""Guard process: it ends the command when `gpu-broker run` dies without warning, as by SIGKILL.

It waits for the end of a pipe of ours. It ends the command's process group, and every process
that left the group and has the lease's token in its environment. Containers of the lease, which
are the engine's processes and not ours, it ends through the engine.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from broker.run.containers import Containers
from broker.run.processes import carries, pids

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

DONE: Final = b"done"

FORGET: Final = b"forget\n"
"""Line that no other contains: those of a group end in its lease's token, which is hexadecimal."""

ROUNDS, PAUSE_S = 20, 0.05
"""Passes over processes that left the group, and seconds between: they may be starting others."""

STARTING: Final = 5
"""Passes in which a container may still appear."""


class Guard:
    """Block in which our death ends the processes named by `watch`; enter it before any thread.

    Args:
        engine: the engine of the command's containers; empty: it has none.
    """

    def __init__(self, engine: str = "") -> None:
        self._engine = engine

    def __enter__(self) -> Self:
        """Start the process that waits for our death."""
        read, self._pipe = os.pipe()
        os.set_inheritable(self._pipe, False)
        self.pid = os.fork()
        if self.pid == 0:
            _wait_for_death(read, self._engine)
        os.close(read)
        return self

    def watch(self, group: int, token: str) -> None:
        """Name a process group and its lease; one write, also in the child."""
        with suppress(BrokenPipeError):  # the guard was killed
            os.write(self._pipe, f"{group} {token}\n".encode())

    def forget(self) -> None:
        """Let go of all that was named: it has ended, and its numbers may name others."""
        with suppress(BrokenPipeError):
            os.write(self._pipe, FORGET)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the guard."""
        with suppress(BrokenPipeError):
            os.write(self._pipe, DONE)
        os.close(self._pipe)
        with suppress(ChildProcessError):  # it was killed, and reaped
            os.waitpid(self.pid, 0)


def _wait_for_death(pipe: int, engine: str) -> None:
    """Wait as the guard process; never return."""
    try:
        os.setsid()
        let_go_of_streams(pipe)
        os.closerange(3, pipe)
        os.closerange(max(3, pipe + 1), os.sysconf("SC_OPEN_MAX"))
        said = b""
        while more := os.read(pipe, 4096):
            said += more
        if not said.endswith(DONE):
            for line in said.rpartition(FORGET)[2].decode().splitlines():
                group, token = line.split()
                _end(int(group), token, Containers(engine, token) if engine else None)
    finally:
        os._exit(0)


def let_go_of_streams(pipe: int) -> None:
    """Detach from the standard streams but `pipe`; a root without /dev has no null device."""
    nothing = None
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR)
    for stream in {0, 1, 2} - {pipe}:
        if nothing is not None:
            os.dup2(nothing, stream)
            continue
        with suppress(OSError):  # it was closed already
            os.close(stream)


def _end(group: int, token: str, containers: Containers | None) -> None:
    for number in range(ROUNDS):
        # The engine may be starting one for a client that is gone.
        removed = containers is not None and (containers.remove() or number < STARTING)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        found = [pid for pid in pids() if carries(pid, f"GPU_LEASE_TOKEN={token}")]
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found and not removed:
            return
        time.sleep(PAUSE_S)
