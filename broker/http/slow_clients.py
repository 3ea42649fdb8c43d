"""uvicorn's HTTP protocol with deadlines for a client's sending and reading.

uvicorn waits for the rest of a request for ever, and for headers of any length: a few hundred slow
connections, or one long header, bring a server without limits down. Requests that wait for a
lease are not bound by the deadline: they have been sent. uvicorn also waits for ever for a client
that does not read its answer, such as a follower of events that stopped reading.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from broker.http.delivery import DeliveryProtocol, unacknowledged

if TYPE_CHECKING:
    import asyncio

    from broker.http.connection_limits import ConnectionLimits

REQUEST_S: Final = 10.0
"""Seconds from the first byte of a request, or from the connection, to its last."""

UNREAD_S: Final = 20.0
"""Most seconds that sent bytes may stay unread, once the buffers are full."""

SLOWEST_BYTES: Final = 16_384
"""Least bytes read in that time: fewer count as not reading."""

HEAD_BYTES: Final = 65_536
"""Most bytes of request line and headers."""


class DeadlineProtocol(DeliveryProtocol):
    """Protocol that closes a connection for too slow a request, too long a head, or no reading."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._crowd: ConnectionLimits = self.config.app.state.crowd  # type: ignore[union-attr] # our own application
        self._deadline: asyncio.TimerHandle | None = None
        self._head: int | None = 0  # bytes so far; None: the head is complete
        self._begun = False
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # asyncio hands over this kind
        """Begin the deadline: a connection on which nothing is sent is a slow request, too."""
        super().connection_made(transport)
        self._crowd.enter(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all deadlines."""
        self._crowd.leave(self.transport)
        self._relax()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read some of a request, and at times of the next."""
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._deadline is None and self._unfinished():
            self._expect()
        if self._head is not None and self._head > HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin the deadline of a request at its first byte."""
        super().on_message_begin()
        self.scope["extensions"]["admit"] = partial(self._crowd.admit, self.transport)  # type: ignore[assignment] # as in `delivery`
        self._head = self._head or 0
        self._begun = True
        self._relax()  # the deadline begins anew, unless the rest has arrived too

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Cancel the deadline of a complete request."""
        self._head = 0
        self._begun = False
        self._relax()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Begin to watch the reading, as the buffers are full."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """End the watch, as the client has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        self._unread = self.loop.call_later(UNREAD_S, self._look, self._unsent())

    def _look(self, before: int) -> None:
        """Go on with a client that reads, though slowly; else abort."""
        if before - self._unsent() >= SLOWEST_BYTES:
            self._watch()
        else:
            self.transport.abort()  # not close, which would wait for the client to read the rest

    def _unsent(self) -> int:
        """Return the bytes that the client has not taken, here and in the kernel."""
        kernel = unacknowledged(self.transport.get_extra_info("socket"))
        return self.transport.get_write_buffer_size() + kernel

    def _unfinished(self) -> bool:
        """Tell whether more of a request must come.

        An empty line begins no request, and ends uvicorn's own timer of an idle connection.
        """
        return self._begun or (self._head is not None and self._idle())

    def _expect(self) -> None:
        self._relax()
        self._deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
