"""Program nvidia-smi: one call at a time, each with an end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

KILLED_S: Final = 1.0
"""Seconds in which a killed program ends, unless it waits in the kernel for a GPU."""


FOLDERS: Final = (
    "/usr/lib/wsl/lib",  # Windows Subsystem for Linux
    "/run/current-system/sw/bin",  # NixOS
    "/usr/local/nvidia/bin",  # containers of Google's and of older NVIDIA runtimes
)
"""Folders of the program that a service's PATH often lacks."""


def find_smi(folders: Iterable[str] = FOLDERS) -> str | None:
    """Return the path of nvidia-smi: on PATH, else where some systems have it; None: nowhere."""
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=os.pathsep.join(folders))


class SmiError(Exception):
    """Error for a program that could not be asked; its text is a sentence."""


@dataclass(frozen=True, slots=True)
class Printed:
    """Result of one call: exit status, stdout, stderr, and the seconds that it took."""

    status: int
    out: str
    err: str
    took_s: float


class SmiProgram:
    """nvidia-smi at `binary`; a call that has not ended after `most_s` is killed.

    A program that cannot be killed is left behind, and no other is started until it has ended.
    """

    def __init__(self, binary: str, most_s: float) -> None:
        self._binary = binary
        self._most_s = most_s
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._stuck: subprocess.Popen[str] | None = None
        self._stuck_at = 0.0  # monotonic
        self._closed = False

    def ask(self, *arguments: str) -> Printed:
        """Call the program with these arguments.

        Raises:
            SmiError: it cannot be started, or has not answered.
        """
        if self._stuck is not None and self._stuck.poll() is None:
            raise SmiError(_silent(time.monotonic() - self._stuck_at))
        self._stuck = None
        began = time.monotonic()
        process = self._start(arguments)
        try:
            out, err = process.communicate(timeout=self._most_s)
        except subprocess.TimeoutExpired:
            self._leave(process, began)
            raise SmiError(_silent(time.monotonic() - began)) from None
        finally:
            self._running = None
        return Printed(process.returncode, out, err, time.monotonic() - began)

    def _start(self, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
        with self._lock:
            if self._closed:
                raise SmiError("the source of nvidia-smi is closed")
            try:
                self._running = subprocess.Popen(  # noqa: S603 - the operator's PATH names it
                    [self._binary, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as error:
                raise SmiError(f"nvidia-smi cannot be started: {error.strerror}") from error
            return self._running

    def _leave(self, process: subprocess.Popen[str], began: float) -> None:
        _kill(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=KILLED_S)
        except subprocess.TimeoutExpired:
            self._stuck, self._stuck_at = process, began

    def close(self) -> None:
        """Start none any more, and kill the one that runs."""
        with self._lock:
            self._closed = True
            running = self._running
        if running is not None:
            _kill(running)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _silent(seconds: float) -> str:
    return f"nvidia-smi has not answered for {seconds:.1f} s"
