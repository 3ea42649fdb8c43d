"""Requests that offer another protocol, as Java's HTTP client does each time.

The offer (`Upgrade: h2c`, `websocket`) is not taken up, and the request is answered as any other.
The parser takes the bytes after the head for the other protocol. Therefore a second parser, which
is given the head without the offer, reads the body and all later requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

BODY_HEADERS = (b"content-length", b"transfer-encoding")


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's protocol for HTTP/1 alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser = _Parser(self)  # type: ignore[assignment] # all that uvicorn uses of a parser


class _Parser:
    """Parser that goes on after an offer."""

    def __init__(self, protocol: PlainProtocol) -> None:
        self._protocol = protocol
        self._begin(_Calls(protocol, self))

    def _begin(self, calls: _Calls) -> None:
        self._parser = httptools.HttpRequestParser(calls)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.get_http_version = self._parser.get_http_version
        self.get_method = self._parser.get_method
        self.should_keep_alive = self._parser.should_keep_alive

    def feed_data(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            (at,) = offer.args
            self._go_on(data[at:])

    def _go_on(self, rest: bytes) -> None:
        """Read the body after the head with the offer, if there is one, and the rest."""
        calls = _CallsAfterOffer(self._protocol, self)
        self._begin(calls)
        if body := self.body_headers():
            calls.muted = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + body + b"\r\n")
            calls.muted = False
        if rest:
            self.feed_data(rest)

    def offered(self) -> bool:
        """Tell whether the last head makes an offer."""
        return bool(self._parser.should_upgrade())

    def should_upgrade(self) -> bool:
        return False

    def body_headers(self) -> bytes:
        """Return the headers with the body's length; empty: there is no body."""
        headers = [(name, value) for name, value in self._protocol.headers if name in BODY_HEADERS]
        if headers in ([], [(b"content-length", b"0")]):
            return b""
        return b"".join(name + b": " + value + b"\r\n" for name, value in headers)


class _Calls:
    """Callbacks of a parser: the protocol's methods."""

    def __init__(self, protocol: PlainProtocol, parser: _Parser) -> None:
        self._parser = parser
        self._complete = protocol.on_message_complete
        self.on_body = protocol.on_body
        self.on_message_begin = self._unmuted(protocol.on_message_begin)
        self.on_url = self._unmuted(protocol.on_url)
        self.on_header = self._unmuted(protocol.on_header)
        self.on_headers_complete = self._unmuted(protocol.on_headers_complete)

    def _unmuted(self, call: Callable[..., None]) -> Callable[..., None]:
        return call

    def on_message_complete(self) -> None:
        """Complete the request, unless its head has an offer: then the body is still to come."""
        if not (self._parser.offered() and self._parser.body_headers()):
            self._complete()


class _CallsAfterOffer(_Calls):
    """The same, except for the head that is repeated."""

    muted = False

    def _unmuted(self, call: Callable[..., None]) -> Callable[..., None]:
        def unless_muted(*args: bytes) -> None:
            if not self.muted:
                call(*args)

        return unless_muted
