"""systemd's side channel: ready, alive, what it does. Without systemd nothing is said.

By hand, because it is one datagram and the packages that do it are unmaintained or need a compiler.
"""

from __future__ import annotations

import os
import socket

from broker.settings import SystemdSettings


class Systemd:
    """Who started us, if it wants to hear of us; it never costs more than a datagram."""

    def __init__(self, settings: SystemdSettings | None = None) -> None:
        self._settings = settings or SystemdSettings()
        self._said = ""

    def ticked(self, problem: str | None) -> None:
        """The broker looked at Redis: the first time it is ready, and each time it is alive.

        A problem is no reason to restart it. Called from the event loop, which a broker that hangs
        does not do: after `WatchdogSec` without it systemd restarts the broker.
        """
        status = "granting leases" if problem is None else f"no leases: {problem}"
        lines = [] if self._said else ["READY=1"]
        if self._settings.watchdog_usec and self._settings.watchdog_pid in {None, os.getpid()}:
            lines.append("WATCHDOG=1")
        if status != self._said:
            lines.append(f"STATUS={status}")
        if lines and self._say("\n".join(lines)):
            self._said = status  # what was not heard is said again

    def stopping(self) -> None:
        """It stops in good order."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> bool:
        """Return whether it was sent; where nobody listens there is nothing to send."""
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
