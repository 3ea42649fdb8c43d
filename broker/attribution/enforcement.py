"""Termination of processes: a signal goes only to the very process that was inspected."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.attribution.processes import Program, Programs

log = logging.getLogger(__name__)

MOST_UNTOLD: Final = 1000
"""Most acts that wait for a pool that cannot be reached."""

TERM_S: Final = 5.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class KillTarget:
    """Process that is to end, with the reason.

    Attributes:
        token: the token of the process's lease, or empty.
    """

    uuid: str
    program: Program
    token: str
    why: str


@dataclass(slots=True)
class _Told:
    handle: int
    at: float
    killed: bool = False


class ProcessKiller:
    """Sender of SIGTERM, and of SIGKILL to a process that is still there after `TERM_S`.

    A pid may be another process by the time a signal arrives, so a handle of the process is opened
    first, what it stands for is compared, and the signal goes to the handle.

    Attributes:
        may_kill: False: no signal is sent, and the report says so.
    """

    def __init__(self, system: Programs, *, may_kill: bool) -> None:
        self._system = system
        self._told: dict[tuple[int, int], _Told] = {}
        self._only_said: set[tuple[int, int]] = set()
        self._untold: deque[tuple[str, str]] = deque(maxlen=MOST_UNTOLD)
        self.may_kill = may_kill

    def untold(self) -> dict[str, str]:
        """Return each device's first act that the pool does not know: `pid signal token why`."""
        return dict(reversed(self._untold))

    def told(self, acts: Mapping[str, str]) -> None:
        """Note that the pool knows of these acts now."""
        for each in acts.items():
            self._untold.remove(each)

    def end(self, condemned: KillTarget) -> None:
        """Send a process its next signal, if one is due; each signal is sent once."""
        program = condemned.program
        key, now = (program.pid, program.start), time.monotonic()
        told = self._told.get(key)
        sent = ""
        if not self.may_kill:
            sent = "" if key in self._only_said else "NONE"
            self._only_said.add(key)
        elif told is None:
            handle = self._open(program)
            if handle is not None:
                self._told[key] = _Told(handle, now)
                sent = "TERM" if self._send(handle, signal.SIGTERM, program) else ""
        elif not told.killed and now - told.at >= TERM_S:
            told.killed = self._send(told.handle, signal.SIGKILL, program)
            sent = "KILL" if told.killed else ""
        if sent:
            log.warning(
                "process %d (%s): signal %s: %s", program.pid, program.name, sent, condemned.why
            )
            act = f"{program.pid} {sent} {condemned.token or '-'} {condemned.why}"
            self._untold.append((condemned.uuid, act))

    def forget(self, condemned: set[tuple[int, int]]) -> None:
        """Drop all but these processes: the next offence of a dropped one begins anew."""
        for key in [key for key in self._told if key not in condemned]:
            os.close(self._told.pop(key).handle)
        self._only_said &= condemned

    def _open(self, program: Program) -> int | None:
        try:
            handle = os.pidfd_open(program.pid)
        except OSError as error:
            log.info("process %d cannot be ended: %s", program.pid, error.strerror)
            return None
        if self._system.lives(f"{program.pid}:{program.start}"):
            return handle
        os.close(handle)
        return None

    def _send(self, handle: int, number: signal.Signals, program: Program) -> bool:
        with suppress(ProcessLookupError):
            try:
                signal.pidfd_send_signal(handle, number)
            except PermissionError:
                log.warning("process %d is another user's: no permission to end it", program.pid)
                return False
            return True
        return False
