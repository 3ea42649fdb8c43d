"""Workers of one `serve`: processes that accept from one socket, watched by this one.

A shared socket and not SO_REUSEPORT: with that, the connections that wait for a killed worker are
lost. This process answers nothing, so it has little that could end it.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_sdk.settings import whole_environment
from broker.systemd import GRANTING, Systemd
from broker.worker import WorkerPlace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1

SHORT_S: Final = 5.0
"""Seconds of a life that is so short that the next one waits for a moment."""

PAUSE_S: Final = 1.0

HUNG_S: Final = 30.0
"""Seconds without a sign of life after which a worker is killed."""

BEAT_S: Final = 1.0
"""Seconds between two messages to systemd."""

DATAGRAM: Final = 4096


class WorkerProcess:
    """One worker: its process, and what it has said.

    A worker speaks to its parent as a service does to systemd.

    Attributes:
        ready: it has read the pool.
        status: the last line about itself.
    """

    def __init__(self, place: WorkerPlace, command: list[str]) -> None:
        self.number = place.number
        self.ready = False
        self.status = ""
        self.heard_at = self._began_at = time.monotonic()
        path = Path(place.folder) / f"notify-{place.number}"
        path.unlink(missing_ok=True)
        self._messages = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._messages.bind(str(path))
        self.process = subprocess.Popen(  # noqa: S603 - this program again
            [*command, "--worker", place.text],
            env=_environment(place.folder, str(path)),
            pass_fds=(place.listener, place.life),
            process_group=0,  # a Ctrl-C is for this process alone
        )

    def hear(self) -> None:
        """Take what the worker has said."""
        with suppress(BlockingIOError):
            while True:
                said = self._messages.recv(DATAGRAM).decode()
                self.heard_at = time.monotonic()
                for line in said.splitlines():
                    name, _, value = line.partition("=")
                    self.ready |= name == "READY"
                    self.status = value if name == "STATUS" else self.status

    @property
    def hangs(self) -> bool:
        """True if it has been silent for long, so that its event loop must stand still."""
        return time.monotonic() - self.heard_at > HUNG_S

    @property
    def was_short(self) -> bool:
        """True if it began only a moment ago."""
        return time.monotonic() - self._began_at < SHORT_S

    def close(self) -> None:
        """Close our end."""
        self._messages.close()


def _environment(folder: str, notify: str) -> dict[str, str]:
    """Return a worker's environment: where prometheus-client keeps figures, and where we hear."""
    ours = {name: value for name, value in whole_environment().items() if name != "WATCHDOG_PID"}
    told = {"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "1", "PROMETHEUS_MULTIPROC_DIR": folder}
    return ours | told


class Workers:
    """All workers of a `serve`.

    Args:
        number: how many.
        place: the place of the first; the others have their own numbers.
        stop_s: most seconds that a clean stop may take.
        announce: called once all are ready.
    """

    def __init__(
        self, number: int, place: WorkerPlace, stop_s: float, announce: Callable[[], None]
    ) -> None:
        self._first = place
        self._stop_s = stop_s
        self._announce = announce
        self._command = list(sys.orig_argv)
        self._command[0] = sys.executable
        self._systemd = Systemd()
        self._stopping = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._told_to_stop)
        self._workers = {n: self._start(n, anew=False) for n in range(1, number + 1)}

    def run(self) -> int:
        """Watch them until SIGTERM or SIGINT; return the exit code.

        A worker that ends before all were ready ends the others, with its own code.
        """
        announced, beat_at = False, 0.0
        while not self._stopping:
            time.sleep(LOOK_S)
            for worker in list(self._workers.values()):
                worker.hear()
                code = worker.process.poll()
                if code is not None and not announced:
                    self.stop()
                    return code if code > 0 else 1
                if code is not None and not self._stopping:
                    self._replace(worker, code)
                elif worker.ready and worker.hangs:
                    log.error("worker %d hangs: it is killed", worker.number)
                    worker.process.kill()
            if not announced and all(worker.ready for worker in self._workers.values()):
                announced = True
                self._announce()
            if announced and time.monotonic() - beat_at >= BEAT_S:
                beat_at = time.monotonic()
                self._tell_systemd()
        self.stop()
        return 0

    def stop(self) -> None:
        """Stop all in good order; kill those that take too long."""
        self._systemd.stopping()
        for worker in self._workers.values():
            worker.process.terminate()
        until = time.monotonic() + self._stop_s
        for worker in self._workers.values():
            try:
                worker.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d does not stop: it is killed", worker.number)  # noqa: TRY400 - it says all
                worker.process.kill()
                worker.process.wait()
            worker.close()

    def _start(self, number: int, *, anew: bool) -> WorkerProcess:
        first = self._first
        place = WorkerPlace(
            number, first.folder, first.replica, first.started, anew,
            first.store_began_anew and not anew, first.listener, first.life,
        )  # fmt: skip
        return WorkerProcess(place, self._command)

    def _replace(self, worker: WorkerProcess, code: int) -> None:
        log.error("worker %d ended with %d: it is replaced", worker.number, code)
        worker.close()
        if worker.was_short:
            time.sleep(PAUSE_S)
        self._workers[worker.number] = self._start(worker.number, anew=True)

    def _tell_systemd(self) -> None:
        """Pass a worker's problem on; a worker that is being replaced is no problem."""
        said = {worker.status for worker in self._workers.values() if worker.ready}
        problems = sorted(said - {GRANTING, ""})
        self._systemd.ticked(problems[0].removeprefix("no leases: ") if problems else None)

    def _told_to_stop(self, _: int, __: FrameType | None) -> None:
        if self._stopping:  # a second signal: the worker that reports waits for leases no longer
            for worker in self._workers.values():
                worker.process.terminate()
        self._stopping = True
