"""Detection of answers that were not taken: the client was gone before it could read them.

A lease in such an answer has no holder until its TTL ends, so its route gives it back. TCP
proves it in three ways: the connection ends before the answer is written; the client's end is
followed by a reset, since the answer met a closed socket; or there is a reset alone, since the
client closed with the answer unread. A reset from a proxy proves nothing: HAProxy resets
connections whose answers it has read. Without a proof (a host that vanished) the TTL decides.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from typing import TYPE_CHECKING, Any, Final

from broker.http.upgrades import PlainProtocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fastapi import Request

LOOK_S: Final = 0.05
"""Seconds between two checks for the acknowledgement by the client's kernel."""

LOOKS: Final = 100
"""Most checks; after them nothing is proved."""

PROXIED: Final = {b"via", b"forwarded", b"x-forwarded-for"}
"""Headers that a proxy adds."""


class Delivery:
    """Answer on its way to its client."""

    def __init__(self) -> None:
        self._undo: Callable[[], object] | None = None
        self._failed = False

    @property
    def pending(self) -> bool:
        """True while the answer's fate matters and is not known yet."""
        return self._undo is not None

    def otherwise(self, undo: Callable[[], object]) -> None:
        """Call `undo` if the answer turns out not to be taken, or already has."""
        self._undo = undo
        if self._failed:
            self.fail()

    def fail(self) -> None:
        """Note that the answer was not taken."""
        self._failed = True
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo()

    def succeed(self) -> None:
        """Note that the answer was taken, or that nothing proves the opposite."""
        self._undo = None


def delivery_of(request: Request) -> Delivery:
    """Return the delivery of a request's answer."""
    found = request.scope.get("extensions", {}).get("delivery")
    return found if isinstance(found, Delivery) else Delivery()


class DeliveryProtocol(PlainProtocol):
    """Protocol that settles the `Delivery` of each request."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._delivery = Delivery()
        self._said_end = False

    def data_received(self, data: bytes) -> None:
        """Read on, unless our end is closed: then nothing can be answered."""
        if not self._said_end:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request; a client that asks again has read the last answer."""
        if self._idle():
            self._delivery.succeed()
        self._delivery = Delivery()
        super().on_message_begin()
        self.scope["extensions"] = {"delivery": self._delivery}  # type: ignore[dict-item] # uvicorn's type knows no objects there

    def on_headers_complete(self) -> None:
        """Make our end of the connection wait for the client's, where it matters."""
        super().on_headers_complete()
        if self.cycle is not None:
            lingering = _Lingering(self.transport, self._delivery, self._say_end)
            self.cycle.transport = lingering  # type: ignore[assignment] # all that a cycle uses of it

    def eof_received(self) -> bool | None:  # type: ignore[override] # True keeps our end open
        """Handle the client's end: keep ours open while the answer may not be taken."""
        if not self._delivery.pending or not self._idle():
            return None
        # Bytes written in this turn of the loop may not be on their way yet.
        self.loop.call_later(LOOK_S, self._settle, LOOKS)
        return True

    def _settle(self, looks: int) -> None:
        """Close when it is known whether the client's kernel took the answer, or never will be."""
        sock = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or sock.fileno() < 0:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._delivery.fail()
        elif looks and unacknowledged(sock):
            self.loop.call_later(LOOK_S, self._settle, looks - 1)
            return
        self._delivery.succeed()
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle the delivery: failed by an end before the answer, or by a reset after it."""
        if not self._idle() or (isinstance(exc, ConnectionError) and not self._proxied()):
            self._delivery.fail()
        self._delivery.succeed()
        super().connection_lost(exc)

    def _proxied(self) -> bool:
        return any(name in PROXIED for name, _ in self.headers or ())

    def _idle(self) -> bool:
        """Tell whether every answer has been written."""
        return self.cycle is None or self.cycle.response_complete

    def _say_end(self) -> None:
        self._said_end = True
        self.transport.write_eof()


class _Lingering:
    """Transport that delays its close until the client's, while an answer may not be taken.

    uvicorn closes after five seconds without another request, so the wait ends by then.
    """

    def __init__(
        self, transport: asyncio.Transport, delivery: Delivery, end: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._delivery = delivery
        self._end = end
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        """Close for writing; close wholly once the client has read that."""
        if self._delivery.pending and self._transport.can_write_eof():
            self._end()
        else:
            self._transport.close()


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes that our kernel has sent, or will, without an acknowledgement."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
