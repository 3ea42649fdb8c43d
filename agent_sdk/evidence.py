"""Evidence that this process holds a lease, which no other user's process can forge.

A lease is registered with a pid that its caller names, and a caller may name any process. So a
process that asks for a lease also keeps a file in memory, open under a name of ours, with a digest
of each of its tokens. A host's reporter looks for it at `/proc/<pid>/fd` before it lets a
registered pid count, and never ends a process without.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from typing import Final

from agent_sdk.fork import identity

NAME: Final = "gpu-lease-holder"
"""Name of the file: `/proc/<pid>/fd` shows it as `/memfd:<name>`."""

DIGEST_BYTES: Final = 16

ADOPTS: Final = "gpu-broker-adopt"
"""Client of a lease that is for another process than its holder."""

SLOTS: Final = 1024
"""Most tokens that a process shows at once; the oldest give way, last those that it holds."""


class _Page:
    """File of one process, written through memory.

    The descriptor is never written to: a program that closes all of its descriptors takes the
    evidence away, and no later file under the same number is hurt.
    """

    def __init__(self) -> None:
        handle = os.memfd_create(NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(handle, SLOTS * DIGEST_BYTES)
            self._memory = mmap.mmap(handle, SLOTS * DIGEST_BYTES)  # it has a descriptor of its own
        finally:
            os.close(handle)
        self._lock = threading.RLock()  # a signal handler may ask for a lease meanwhile
        self._used = 0
        self._loose: dict[str, int] = {}  # token -> slot, the oldest first
        self._held: dict[str, int] = {}

    def add(self, token: str) -> None:
        """Add the evidence of a token."""
        with self._lock:
            if token not in self._held:
                slot = self._loose.pop(token, None)
                self._loose[token] = slot = self._free_slot() if slot is None else slot
                at = slot * DIGEST_BYTES
                self._memory[at : at + DIGEST_BYTES] = digest(token)

    def _free_slot(self) -> int:
        if self._used < SLOTS:
            self._used += 1
            return self._used - 1
        gives_way = self._loose or self._held
        return gives_way.pop(next(iter(gives_way)))

    def hold(self, token: str) -> None:
        """Show a token, and let it give way to others only where all others are held too."""
        with self._lock:
            if token not in self._held:
                if token not in self._loose:
                    self.add(token)
                self._held[token] = self._loose.pop(token)

    def over(self, token: str) -> None:
        """Let a token give way in its turn."""
        with self._lock:
            slot = self._held.pop(token, None)
            if slot is not None:
                self._loose[token] = slot


_pages: dict[str, _Page] = {}
"""File by process. A forked child keeps its parent's, and writes into one of its own."""


def show(token: str) -> None:
    """Show that this process holds, or asks for, the lease of a token.

    Where that fails (no descriptor left, no Linux) the lease is as good, but its processes count as
    processes without a lease wherever a reporter can look into them.
    """
    try:
        page = _own_page()
        page.add(token)
    except (OSError, AttributeError):  # quicker than `suppress`, on the way of every lease
        pass


def hold(token: str) -> None:
    """Show that this process holds the lease of a token, however many others it asks for."""
    try:
        page = _own_page()
        page.hold(token)
    except (OSError, AttributeError):
        pass


def over(token: str) -> None:
    """Note that this process no longer holds a lease: what shows it may give way."""
    page = _pages.get(identity())
    if page is not None:
        page.over(token)


def _own_page() -> _Page:
    me = identity()
    return _pages.get(me) or _pages.setdefault(me, _Page())


def show_for(token: str, process: str) -> None:
    """Show that the lease of a token is for another process, `pid:start`, which ran before it."""
    show(f"{token} {process}")


def digest(token: str) -> bytes:
    """Return the shown digest of a token: its reader learns no token."""
    return hashlib.sha256(token.encode()).digest()[:DIGEST_BYTES]


def shows(content: bytes, token: str) -> bool:
    """Tell whether a process's file shows a token."""
    at, wanted = 0, digest(token)
    while (at := content.find(wanted, at)) >= 0:
        if at % DIGEST_BYTES == 0:
            return True
        at += 1
    return False
