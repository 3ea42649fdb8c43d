"""OpenAPI document without the bodies: statuses with their codes, and the page."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from agent_sdk.errors import CODES
from broker.http.document.models import Problem
from broker.path_prefix import bases_of

DESCRIPTION: Final = """
Leases on GPUs: the right to use GPU memory, or whole GPUs, for a time. Redis holds every fact;
every replica answers the same. Times are epoch seconds, memory is MiB in names ending `_mb`.
Every error has a `detail` for people, and is a problem of RFC 9457; a refusal has a `code` for
programs too. An unknown path, a wrong method, a body that is too large and an `If-Match` of another
version have none.
`GET /events` and `GET /live` are streams that never end, so no generated client should read them
like the others: `x-streams` describes them.
"""

TAGS: Final = [
    {"name": "leases", "description": "Take, keep, explain and give back leases."},
    {"name": "pool", "description": "Lists of GPUs, hosts, leases and waiters; the policy."},
    {"name": "operators", "description": "Acts that need an operator's key."},
    {"name": "health", "description": "Liveness, readiness, metrics."},
    {"name": "streams", "description": "Server-Sent Events."},
]

CONTACT: Final = {"name": "The gpu-lease-broker maintainers"}

LICENSE: Final = {"name": "Apache 2.0", "identifier": "Apache-2.0"}

NO_KEY: Final[dict[str, Any]] = {"security": []}
"""Part of an operation that needs no key."""

POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)
"""Content security policy of `/docs`: scripts from here alone. Swagger UI sets its own styles."""

PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>GPU lease broker</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css">
<link rel="icon" href="docs/static/favicon.png"></head>
<body><div id="swagger-ui"></div>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script src="docs/init.js"></script></body>
</html>
"""

START: Final = (
    'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true,'
    " persistAuthorization: false});\n"
)


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the statuses of these codes, as a route's `responses`."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code].status, []).append(f"`{code}`: {CODES[code].says}")
    return {
        status: {"model": Problem, "description": "; ".join(said)}
        for status, said in by_status.items()
    }


def answers(kind: Any, **more: Any) -> dict[int | str, dict[str, Any]]:
    """Return the answer 200 of a type, as a route's `responses`: described, and not checked."""
    return {200: {"model": kind, **more}}


EVERYWHERE: Final = errors(
    "unauthorized", "forbidden", "store_unavailable", "outcome_unknown", "not_ready",
    "protocol_mismatch", "busy",
)  # fmt: skip
"""Statuses of every route that needs a key and asks the store; a store's denial is a 403 too."""

MALFORMED: Final[dict[int | str, dict[str, Any]]] = {
    422: {"model": Problem, "description": "The request is not well-formed."}
}

WITH_BODY: Final[dict[int | str, dict[str, Any]]] = {
    413: {"model": Problem, "description": "The body is larger than 16 KiB."},
    **MALFORMED,
}
"""Statuses of every route that reads a body."""

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def document(request: Request) -> JSONResponse:
    """Return the document, with the prefixes of its paths: as asked, and the other one."""
    made = await asyncio.to_thread(request.app.openapi)  # the first time it takes long
    servers = [{"url": base or "/"} for base in bases_of(request.scope)]
    return JSONResponse(made | {"servers": servers})


@router.get("/docs")
async def page() -> HTMLResponse:
    """Return the page of the document, to read and to try; nothing of it comes from elsewhere."""
    return HTMLResponse(PAGE, headers={"content-security-policy": POLICY})


@router.get("/docs/init.js")
async def start() -> Response:
    """Return the page's script; outside the page, so that no inline script need be allowed."""
    return Response(START, media_type="text/javascript")


def assets() -> StaticFiles:
    """Return Swagger UI's files, of the package `fastapi-offline`."""
    found = importlib.util.find_spec("fastapi_offline")
    assert found is not None  # noqa: S101 - it is required beside FastAPI
    assert found.origin is not None  # noqa: S101 - like every package with files
    return StaticFiles(directory=Path(found.origin).parent / "static")
