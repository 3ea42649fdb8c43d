"""A stand-in for the GPU watchdog that each agent had before there was an orchestrator.

It polls nvidia-smi and frees this process's memory when a GPU is nearly full. Where an orchestrator
is configured that is the orchestrator's business, and the watchdog stays off.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

from agent_sdk.settings import read_orchestrator_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

POLL_S = 5.0

FULL = 0.9
"""The share of a GPU's memory in use from which memory is freed."""

QUERY = ("nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")


class Watchdog:
    """The thread; it is `on` from `start` to `stop`."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watchdog", daemon=True)

    @property
    def state(self) -> str:
        """`on` or `off`."""
        return "on" if self._thread.is_alive() else "off"

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """Poll no more."""
        self._stopped.set()

    def _run(self) -> None:
        while shutil.which(QUERY[0]) and not self._stopped.is_set():
            if nearly_full():
                gc.collect()
            self._stopped.wait(POLL_S)
        self._stopped.wait()  # nothing to poll on this machine


def nearly_full() -> bool:
    """Return whether a local GPU has little memory left; False when nvidia-smi cannot tell."""
    try:
        told = subprocess.run(QUERY, capture_output=True, text=True, timeout=POLL_S, check=True)
        rows = [line.split(",") for line in told.stdout.splitlines()]
        return any(float(used) >= FULL * float(total) for used, total in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def autostart(environ: Mapping[str, str] | None = None) -> Watchdog:
    """Start it unless GPU_ORCHESTRATOR_URL names an orchestrator, or GPU_WATCHDOG is `off`."""
    env = os.environ if environ is None else environ
    watchdog = Watchdog()
    unwanted = env.get("GPU_WATCHDOG", "").lower() == "off"
    if not unwanted and not read_orchestrator_settings(env).configured:
        watchdog.start()
    return watchdog
