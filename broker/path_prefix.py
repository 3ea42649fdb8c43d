"""Path prefix of a reverse proxy that serves the broker under `https://gpu.example/broker/`.

The prefix is `GPU_BROKER_ROOT_PATH`, else the proxy's `X-Forwarded-Prefix`. The proxy may or may
not take the prefix off the path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+){1,8}")
"""Form of a prefix, without `//`, which would name another host in a `Location`."""


class PathPrefix:
    """ASGI middleware that sets `root_path`, and `path` with it, as ASGI has them.

    Args:
        app: the application behind it.
        prefix: the settings' prefix; empty = the proxy's.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its prefix."""
        if scope["type"] == "http" and (prefix := self._prefix or _said(scope)):
            scope["root_path"] = prefix
            if not f"{scope['path']}/".startswith(f"{prefix}/"):
                scope["path"] = prefix + scope["path"]
        await self._app(scope, receive, send)


def _said(scope: Scope) -> str:
    """Return the proxy's prefix, if it has the form of one."""
    given = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
    prefix = given[0].decode("latin-1").rstrip("/") if len(given) == 1 else ""
    return prefix if PREFIX.fullmatch(prefix) else ""


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"
