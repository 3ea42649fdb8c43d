"""Messages to systemd: ready, alive, status. Without systemd none are sent.

Written by hand: it is one datagram, and the packages for it are unmaintained or need a compiler.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from broker.settings import SystemdSettings

GRANTING: Final = "granting leases"
"""Status of a broker without a problem."""


class Systemd:
    """Channel to systemd, if it wants messages; each costs no more than a datagram."""

    def __init__(self, settings: SystemdSettings | None = None) -> None:
        self._settings = settings or SystemdSettings()
        self._said = ""

    def ticked(self, problem: str | None) -> None:
        """Tell systemd after a look at Redis: ready the first time, and alive each time.

        A problem is no reason for a restart. A hanging event loop does not make this call: after
        `WatchdogSec` without it systemd restarts the broker.
        """
        status = GRANTING if problem is None else f"no leases: {problem}"
        lines = [] if self._said else ["READY=1"]
        if self._settings.watchdog_usec and self._settings.watchdog_pid in {None, os.getpid()}:
            lines.append("WATCHDOG=1")
        if status != self._said:
            lines.append(f"STATUS={status}")
        if lines and self._say("\n".join(lines)):
            self._said = status  # an unsent status is sent again

    def stopping(self) -> None:
        """Tell systemd that the broker stops in good order."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> bool:
        """Send a message; return False if it could not be sent, True also without a receiver."""
        path = self._settings.notify_socket
        if path is None:
            return True
        address = "\0" + path[1:] if path.startswith("@") else path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.setblocking(False)
                channel.sendto(text.encode(), address)
        except OSError:
            return False
        return True
