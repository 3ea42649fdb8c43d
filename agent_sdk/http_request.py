"""HTTP requests with one deadline over all parts: name lookup, connect, every byte read.

The timeouts of HTTP clients are per operation: a server that drips a byte a second, or a resolver
that hangs, keeps their callers for minutes. Here the request runs in a daemon thread of its own,
and the caller waits for that thread no longer than its limit. No redirects, no proxies.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from agent_sdk.clock import local_now
from agent_sdk.protocol.validation import json_number
from agent_sdk.threads import begin, daemon

LONGEST_BODY = 32 * 1024 * 1024
"""Most bytes of an answer: some 50,000 devices in `/gpu/info`."""


class Unanswered(Exception):
    """Error of a missing HTTP answer, or a late one.

    Attributes:
        sent: the request was on its way, and may have been executed.
    """

    def __init__(self, why: str, *, sent: bool = False) -> None:
        super().__init__(why)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer. A body that is no JSON object counts as empty."""

    status: int
    body: dict[str, Any]


class Web:
    """Requests of one client to one base URL.

    Raises:
        ValueError: it is no http:// or https:// URL with a host.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("the base URL is no http:// or https:// URL")
        self._tls = parts.scheme == "https"
        self.hostname = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        try:
            self._connection(local_now())
        except http.client.HTTPException:
            raise ValueError(f"{parts.hostname!r} is no name of a host") from None

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, until: float
    ) -> Reply:
        """Return the answer; `until` is on `clock.local_now`'s clock.

        Raises:
            Unanswered: no answer by then, or another protocol's.
        TypeError, ValueError: the body is not JSON.
        """
        payload = None if body is None else json.dumps(body, default=json_number).encode()
        call = _Call(self._connection(until), method, self._prefix + path, self._headers, payload)
        try:
            begin(daemon(call.run, "gpu-lease-http"))
        except RuntimeError as error:  # no more threads, or the interpreter ends
            raise Unanswered(str(error)) from error
        try:
            call.done.get(timeout=max(0.0, until - local_now()))
        except Empty:
            call.abandon()
            raise Unanswered("no answer in time", sent=call.sent) from None
        except BaseException:  # the caller was interrupted
            call.abandon()
            raise
        if call.error is not None:
            raise Unanswered(str(call.error), sent=call.sent) from call.error
        return Reply(call.status, _parsed(call.answer))

    def _connection(self, until: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self.hostname, self._port, timeout=max(0.001, until - local_now()))


class _Call:
    """Request in a thread that no caller needs to wait for."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: dict[str, str],
        payload: bytes | None,
    ) -> None:
        self._connection = connection
        self._method = method
        self._path = path
        self._headers = {"Accept": "application/json", "Connection": "close", **headers}
        self._payload = payload
        self.done: SimpleQueue[None] = SimpleQueue()  # an interrupt leaves no lock of it held
        self.error: Exception | None = None
        self.sent = False
        self._abandoned = False
        self._lock = threading.Lock()
        self.status = 0
        self.answer = b""

    def run(self) -> None:
        try:
            headers = self._headers
            if self._payload is not None:
                headers |= {"Content-Type": "application/json"}
            self._connection.connect()
            with self._lock:
                if self._abandoned:  # no caller would learn its result
                    return
                self.sent = True
            self._connection.request(self._method, self._path, self._payload, headers)
            response = self._connection.getresponse()
            self.answer = response.read(LONGEST_BODY)
            if response.length:  # torn, or longer than we read
                self.error = http.client.IncompleteRead(self.answer, response.length)
            self.status = response.status
        except Exception as error:  # noqa: BLE001 - on any error the caller got no answer
            self.error = error
        finally:
            self._connection.close()
            self.done.put(None)

    def abandon(self) -> None:
        """Wake the thread out of a read, so that it ends; an unsent request never leaves."""
        with self._lock:
            self._abandoned = True
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _parsed(answer: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        body = json.loads(answer)
        if isinstance(body, dict):
            return body
    return {}
