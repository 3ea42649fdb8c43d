"""Path prefix of a reverse proxy that serves the broker under `https://gpu.example/broker/`.

The prefix is `GPU_BROKER_ROOT_PATH`, else the proxy's `X-Forwarded-Prefix`. The proxy may or may
not take the prefix off the path.

`/v1` is a prefix of every path, too: its paths are the same routes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from starlette.types import Scope

PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+){1,8}")
"""Form of a prefix, without `//`, which would name another host in a `Location`."""


VERSION: Final = "/v1"
"""Name of the interface's version, before any path."""


def put_prefix(scope: Scope, prefix: str) -> None:
    """Set `root_path`, and `path` with it, as ASGI has them; a version is a part of `root_path`.

    `prefix`: the settings'; empty = the proxy's.
    """
    if prefix := prefix or _said(scope):
        scope["root_path"] = prefix
        if not f"{scope['path']}/".startswith(f"{prefix}/"):
            scope["path"] = prefix + scope["path"]
    if scope["path"].startswith(f"{prefix}{VERSION}/"):
        scope["root_path"] = f"{prefix}{VERSION}"
        scope["version"] = VERSION


def bases_of(scope: Mapping[str, Any]) -> list[str]:
    """Return the prefixes under which the routes are, the one that was used first."""
    used: str = scope.get("root_path", "")
    if "version" in scope:
        return [used, used.removesuffix(VERSION)]
    return [used, f"{used}{VERSION}"]


def _said(scope: Scope) -> str:
    """Return the proxy's prefix, if it has the form of one."""
    given = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
    prefix = given[0].decode("latin-1").rstrip("/") if len(given) == 1 else ""
    return prefix if PREFIX.fullmatch(prefix) else ""


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"
