"""Words between a command and the keeper of a lease on this machine.

The keeper listens on an abstract socket of its lease: it leaves no file behind, however the keeper
ends. Its name is a digest of the token, because every user may list the names. Both sides compare
the other's user: the keeper obeys its own user and root.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MOST_BYTES = 4096

ANSWER_S = 2.0
"""Seconds that either side waits for the other's message."""


class Control:
    """Socket on which the keeper of a lease takes requests, one at a time."""

    def __init__(self, token: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mute: socket.socket | None = None
        try:
            self._socket.bind(_address(token))
            self._socket.listen(8)
        except OSError:  # another one keeps the same lease, and is asked; or a sandbox forbids it
            self._socket.close()
            self._socket, self._mute = socket.socketpair()  # never readable, as an unbound one is

    def fileno(self) -> int:
        """Return the descriptor, readable when a request waits."""
        return self._socket.fileno()

    def answer(self, act: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Take one request and answer it; a caller that says nothing in time gets none."""
        with suppress(OSError, ValueError):
            caller, _ = self._socket.accept()
            with caller:
                caller.settimeout(ANSWER_S)
                if _user(caller) in {0, os.geteuid()}:
                    request = json.loads(caller.recv(MOST_BYTES))
                    caller.send(json.dumps(act(request)).encode())

    def __enter__(self) -> Self:
        """Close the socket at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the socket."""
        self._socket.close()
        if self._mute is not None:
            self._mute.close()


def ask_keeper(token: str, **request: Any) -> dict[str, Any] | None:
    """Ask the keeper of a lease; None: none of ours keeps it on this machine."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
        suppress(OSError, ValueError),
    ):
        link.settimeout(ANSWER_S)
        link.connect(_address(token))
        if os.geteuid() not in {0, _user(link)}:
            return None
        link.send(json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(link.recv(MOST_BYTES))
        return answer
    return None


def _address(token: str) -> str:
    return f"\0gpu-broker-keeper-{sha256(token.encode()).hexdigest()[:32]}"


def _user(link: socket.socket) -> int:
    """Return the user of the process at the other end, by the kernel's word."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)
