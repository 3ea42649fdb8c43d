"""Limits of connections: those without a key leave room for clients with one.

A stranger is a connection without a key so far. When there are too many, the oldest stranger is
ended: each new connection has its moment to show a key, however many others hold on.
"""

from __future__ import annotations

import fcntl
import resource
import termios
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

MOST: Final = 10_000
"""Most connections at once, where the system allows so many descriptors."""

OWN: Final = 64
"""Descriptors set aside for the store, the devices and files."""

LEAST: Final = 16

MOMENT_S: Final = 1.0
"""Seconds for which a stranger that has sent something is spared."""

LOOKED_AT: Final = 64
"""Most strangers that are looked at to choose one that is ended."""


class ConnectionLimits:
    """Connections of one process.

    Args:
        most: the limit.
    """

    def __init__(self, most: int) -> None:
        self._strangers_most = max(LEAST // 2, most // 4)
        self._known_most = most - self._strangers_most
        self._strangers: dict[asyncio.Transport, float] = {}
        self._known: dict[asyncio.Transport, str] = {}
        self._of: Counter[str] = Counter()

    def enter(self, transport: asyncio.Transport) -> None:
        """Add a new connection; end a stranger where there are too many."""
        self._strangers[transport] = time.monotonic()
        if len(self._strangers) > self._strangers_most:
            victim = self._least()
            del self._strangers[victim]
            victim.abort()

    def leave(self, transport: asyncio.Transport) -> None:
        """Remove a connection that has ended."""
        self._strangers.pop(transport, None)
        name = self._known.pop(transport, None)
        if name is not None:
            self._of[name] -= 1
            if not self._of[name]:
                del self._of[name]

    def admit(self, transport: asyncio.Transport, name: str, *, shared: bool) -> bool:
        """Make a connection a known one; return False without room for it among those with keys.

        Args:
            transport: the connection.
            name: the name of its key.
            shared: there are several keys, so one may take half of the room at most.
        """
        if transport in self._known:
            return True
        mine = self._known_most // 2 if shared else self._known_most
        if len(self._known) >= self._known_most or self._of[name] >= mine:
            return False
        self._strangers.pop(transport, None)
        self._known[transport] = name
        self._of[name] += 1
        return True

    def _least(self) -> asyncio.Transport:
        """Return the oldest stranger, sparing any that has just sent something if possible."""
        now = time.monotonic()
        for transport, since in list(self._strangers.items())[:LOOKED_AT]:
            if now > since + MOMENT_S or not _unread(transport):
                return transport
        return next(iter(self._strangers))


def _unread(transport: asyncio.Transport) -> bool:
    """Tell whether a connection has sent bytes that we have not read yet."""
    sock = transport.get_extra_info("socket")
    return sock.fileno() >= 0 and fcntl.ioctl(sock, termios.FIONREAD, bytes(4)) != bytes(4)


def room() -> int:
    """Raise this process's limit of descriptors; return the connections that fit into half of it.

    Half: the kernel hands over many connections at once, before we may end one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST + OWN
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    limit = wanted if soft == resource.RLIM_INFINITY else soft
    return max(LEAST, min(MOST, (limit - OWN) // 2))
