"""The one layer of every request: its id, its key, its counters, its headers and its line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi.middleware.cors import CORSMiddleware

from broker.http.security_headers import missing_from
from broker.path_prefix import put_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from broker.http.auth import KeyCheck
    from broker.logs import VerbLog
    from broker.metrics import Metrics


class EveryRequest:
    """ASGI application around the routes.

    One layer and not one for each purpose: each would cost a wrapped `send` for every message.

    Args:
        routes: the application behind it.
        keys: says which requests get there.
        metrics: the counters.
        log: the lines.
        prefix: the settings' path prefix; empty = the proxy's.
        origins: web origins with pages that may ask.
    """

    def __init__(
        self,
        routes: ASGIApp,
        keys: KeyCheck,
        metrics: Metrics,
        log: VerbLog,
        *,
        prefix: str,
        origins: Sequence[str],
    ) -> None:
        self._routes = routes
        self._keys = keys
        self._metrics = metrics
        self._log = log
        self._prefix = prefix
        self._behind: ASGIApp = self._with_key
        if origins:  # before the keys: a browser's question whether it may ask has none
            self._behind = CORSMiddleware(
                self._with_key,
                allow_origins=origins,
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=[
                    "Authorization",
                    "Content-Type",
                    "If-Match",
                    "If-None-Match",
                    "Last-Event-ID",
                ],
                expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["method"] == "HEAD":
            await _head_as_get(self._answer, scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 0
        put_prefix(scope, self._prefix)
        self._metrics.asked(scope)
        request_id = self._log.begin(scope)

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, own = message["status"], message["headers"]
                message["headers"] = [*own, *missing_from(own), (b"x-request-id", request_id)]
                self._metrics.answered(scope, status, time.perf_counter() - began)
            await send(message)

        try:
            await self._behind(scope, receive, finish)
        finally:
            self._log.end(scope, status, time.perf_counter() - began)

    async def _with_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._keys.refusal(scope) or self._routes)(scope, receive, send)


async def _head_as_get(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD as GET, without the body; a stream ends after its headers."""
    answered = False

    async def head_alone(message: Message) -> None:
        nonlocal answered
        if message["type"] == "http.response.start":
            answered = True
            await send(message)
            await send({"type": "http.response.body", "body": b""})

    async def until_answered() -> Message:
        return {"type": "http.disconnect"} if answered else await receive()

    await app({**scope, "method": "GET"}, until_answered, head_alone)
