"""MCP over HTTP: `/mcp` of the broker, behind its keys."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.mcp.sessions import Sessions
from broker.mcp_terms import INSTALL, Terms

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.types import Receive, Scope, Send

    from broker.api_keys import Principal
    from broker.replica import Broker
    from broker.settings import Settings

PATH: Final = "/mcp"

SESSIONS: Final = 1000
"""Most sessions of older protocols at once; `sessions` bounds those of one key."""

SESSION_S: Final = 600.0
"""Seconds after the last request of a session at which it ends; its leases do not."""

STOP_S: Final = 1.0
"""Most seconds in which answers are still given once this process is told to stop."""

NOT_INSTALLED: Final = f"MCP is not installed at this broker: {INSTALL}"

STOPPING: Final = "this broker stops: ask again, here or at another replica"


class McpEndpoint:
    """ASGI endpoint of MCP. The SDK is imported at its first request.

    Its import takes a second and 60 MiB, which a broker without such agents does not spend.

    Args:
        settings: the broker's.

    Attributes:
        route: its route.
    """

    def __init__(self, settings: Settings) -> None:
        self.route = Route(PATH, endpoint=self, methods=None)
        self._terms = Terms(
            settings.mcp_idle_release_s, settings.mcp_alone_gpus, settings.mcp_alone_mb
        )
        # A session is known to one process: with several workers the older protocol has none.
        self._stateless = settings.workers > 1
        self._installed = find_spec("mcp") is not None
        self._asked = asyncio.Event()
        self._sessions: Sessions | None = None
        self._ready = asyncio.Event()
        self._posts: set[asyncio.Future[None]] = set()

    async def run(self, broker: Broker) -> None:
        """Serve from the first request until the broker stops."""
        await self._asked.wait()
        try:
            manager = await self._made(broker)
            async with manager.run():
                self._sessions = Sessions(manager.handle_request)
                self._ready.set()
                await broker.stopping.wait()
                self._sessions = None
                if self._posts:  # calls that wait are answered now
                    await asyncio.wait(self._posts, timeout=STOP_S)
        finally:
            self._sessions = None
            self._ready.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["route"] = self.route
        if not self._installed:
            await JSONResponse({"detail": NOT_INSTALLED}, 404)(scope, receive, send)
            return
        self._asked.set()
        await self._ready.wait()
        if self._sessions is None:
            await JSONResponse({"detail": STOPPING}, 503)(scope, receive, send)
            return
        _bind(scope)
        over = asyncio.get_running_loop().create_future()
        if scope["method"] == "POST":
            self._posts.add(over)
        try:
            await self._sessions.handle(scope, receive, send)
        finally:
            over.set_result(None)
            self._posts.discard(over)

    async def _made(self, broker: Broker) -> StreamableHTTPSessionManager:
        logging.getLogger("mcp").setLevel(logging.ERROR)  # its warnings name sessions
        server, leases = await asyncio.to_thread(_imported)
        made = server.LeaseServer(leases.KeyLeases(self._terms, broker))
        security = import_module("mcp.server.transport_security")
        # Host is checked before, for a broker without keys; behind keys any name is right.
        made.streamable_http_app(
            stateless_http=self._stateless,
            max_sessions=SESSIONS,
            session_idle_timeout=SESSION_S,
            transport_security=security.TransportSecuritySettings(
                enable_dns_rebinding_protection=False
            ),
        )
        manager: StreamableHTTPSessionManager = made.session_manager
        return manager


def _imported() -> tuple[Any, Any]:
    return import_module("broker.mcp.server"), import_module("broker.mcp.key_leases")


def _bind(scope: Scope) -> None:
    """Bind a session of the older protocol to the key that makes it: to others it is unknown."""
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser  # noqa: PLC0415 - late
    from mcp.server.auth.provider import AccessToken  # noqa: PLC0415 - as above

    who: Principal = scope["principal"]
    if who.name:
        token = AccessToken(token="", client_id=who.name, scopes=[who.role])
        scope["user"] = AuthenticatedUser(token)
