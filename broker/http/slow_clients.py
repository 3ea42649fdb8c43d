"""uvicorn's HTTP protocol with a deadline for what a client sends, and for what it reads.

uvicorn waits for the rest of a request for ever, and for headers of any length: a few hundred slow
connections, or one long header, cost a server that has neither limit. Requests that wait for a
lease are not bound by it: they have been sent. And it waits for ever for a client that does not
read its answer, as one that follows events and stopped to.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from broker.http.delivery import DeliveryProtocol, unacknowledged

if TYPE_CHECKING:
    import asyncio

    from broker.http.connection_limits import ConnectionLimits

REQUEST_S: Final = 10.0
"""From the first byte of a request, or from the connection, to its last."""

UNREAD_S: Final = 20.0
"""How long a client may leave what was sent to it unread, once the buffers are full."""

SLOWEST_BYTES: Final = 16_384
"""Who takes so much in that time reads, though slowly; who takes less only seems to."""

HEAD_BYTES: Final = 65_536
"""Request line and headers."""


class DeadlineProtocol(DeliveryProtocol):
    """Closes a connection on which too little is sent, too long a head, or nothing is read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._crowd: ConnectionLimits = self.config.app.state.crowd  # type: ignore[union-attr] # our own application
        self._deadline: asyncio.TimerHandle | None = None
        self._head: int | None = 0  # bytes so far; None: it is complete
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # asyncio hands over this kind
        """A connection on which nothing is sent is a slow request, too."""
        super().connection_made(transport)
        self._crowd.enter(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._crowd.leave(self.transport)
        self._relax()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request, and at times of the next."""
        if self._deadline is None and self._head is not None and self._idle():
            self._expect()  # an empty line begins no request, and ends uvicorn's own timer
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self.scope["extensions"]["admit"] = partial(self._crowd.admit, self.transport)  # type: ignore[assignment] # as in `delivery`
        self._head = self._head or 0
        self._expect()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there."""
        self._head = 0
        self._relax()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The buffers are full."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        self._unread = self.loop.call_later(UNREAD_S, self._look, self._unsent())

    def _look(self, before: int) -> None:
        """Let a client go on that reads, though slowly."""
        if before - self._unsent() >= SLOWEST_BYTES:
            self._watch()
        else:
            self.transport.abort()  # not close, which would wait for the client to read the rest

    def _unsent(self) -> int:
        """Return bytes that the client has not taken, here and in the kernel."""
        kernel = unacknowledged(self.transport.get_extra_info("socket"))
        return self.transport.get_write_buffer_size() + kernel

    def _expect(self) -> None:
        self._relax()
        self._deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
