"""Errors as HTTP answers: `detail` and `code`, and beside them the members of RFC 9457."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent_sdk.errors import CODES, BadRequest, LeaseError, LeaseLost, NoCapacity, UnknownToken
from broker.http.ignored import JSON, PROBLEM_JSON, ignored_in
from broker.logs import note, request_id
from broker.text.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request
    from starlette.types import Scope

SOONEST_RETRY_S = 1

NO_OBJECT: Final = "dataclass_type"
"""Pydantic's type of the error for a body, or a part of it, that is no object."""

INNER: Final = "must be a JSON object"
"""Message for a part of a body that is none."""

NO_TEXT = 400
"""FastAPI's status for a body that it cannot decode."""


TYPE: Final = "tag:gpu-lease-broker.example,2026:problem:"
"""Begin of the URIs that name codes: names that never change, and no addresses (RFC 4151)."""

UNNAMED: Final = "about:blank"
"""URI of an error that its status says all about."""


def problem(error: LeaseError, scope: Scope) -> JSONResponse:
    """Return the HTTP answer for a lease error, in the form that the request asks for."""
    note(code=error.code)
    status = CODES[error.code].status
    if isinstance(error, UnknownToken):
        return _answer(scope, status, {"detail": "unknown_token", "code": error.code})
    if isinstance(error, LeaseLost):
        lost: dict[str, object] = {"detail": "lost", "reason": error.code, "code": error.code}
        return _answer(scope, status, lost)
    if isinstance(error, BadRequest):  # in the form of FastAPI's own errors
        where = "query" if scope["method"] in {"GET", "HEAD"} else "body"
        detail = [{"type": error.code, "loc": [where], "msg": str(error)}]
        return _malformed(scope, detail)
    body: dict[str, object] = {
        "detail": str(error),
        "code": error.code,
        "retryable": error.retryable,
    }
    if isinstance(error, NoCapacity):
        body["retry_after_s"] = error.retry_after_s
    headers = {"WWW-Authenticate": "Bearer"} if error.code == "unauthorized" else {}
    if error.retryable:
        after_s = error.retry_after_s if isinstance(error, NoCapacity) else None
        headers["Retry-After"] = str(max(SOONEST_RETRY_S, math.ceil(after_s or 0)))
    return _answer(scope, status, body, headers)


def too_large(scope: Scope, most_bytes: int) -> JSONResponse | None:
    """Return the refusal of a body that is announced as larger than this; None: it is not."""
    said = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if not said.isdigit() or int(said) <= most_bytes:
        return None
    return _answer(scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"detail": "Content Too Large"})


def _malformed(
    scope: Scope, faults: list[dict[str, Any]], ignored: list[str] | None = None
) -> JSONResponse:
    """Return 422. RFC 9457 has a string as `detail`, and the documented answer the faults."""
    body: dict[str, object] = {"detail": faults, "code": "bad_request"}
    if _asks_for_problem(scope):
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in faults)
        body |= {"detail": said, "errors": faults}
    if ignored:
        body["ignored"] = ignored
    return _answer(scope, CODES["bad_request"].status, body)


def _answer(
    scope: Scope,
    status: int,
    body: dict[str, object],
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return an error with the members of RFC 9457."""
    code = body.get("code")
    members = {
        "type": f"{TYPE}{code}" if code else UNNAMED,
        "title": CODES[str(code)].says if code else HTTPStatus(status).phrase,
        "status": status,
        "instance": f"#{request_id()}",
    }
    kind = PROBLEM_JSON if _asks_for_problem(scope) else JSON
    return JSONResponse(body | members, status, headers, kind)


def _asks_for_problem(scope: Scope) -> bool:
    """Tell whether the request accepts RFC 9457's media type by name."""
    wanted = PROBLEM_JSON.encode()
    return any(name == b"accept" and wanted in value.lower() for name, value in scope["headers"])


async def _lease_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LeaseError)  # noqa: S101 - registered for nothing else
    return problem(error, request.scope)


async def _bad_input(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 without the input: a NaN or a lone surrogate in an echo would be a 500."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    detail = [
        {"type": e["type"], "loc": [_printable(part) for part in e["loc"]], "msg": e["msg"]}
        for e in error.errors()
    ]
    for each in detail:
        if each["type"] == NO_OBJECT:  # pydantic's own words name a class
            whole = each["loc"] == ["body"]
            each["msg"] = _no_object(request.headers.get("content-type", "")) if whole else INNER
    ignored = ignored_in(request.scope.get("route"), error.body)
    return _malformed(request.scope, detail, ignored)


def _no_object(content_type: str) -> str:
    """Return the reason for which a body was not read as a JSON object."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return "the body must be a JSON object"
    sent = printable(content_type)[:80] or "none"
    return f"the header Content-Type must be application/json for a JSON body; it was {sent}"


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer FastAPI's own errors; a body that is no text is malformed like any other."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    if error.status_code == NO_TEXT:
        detail = [{"type": "json_invalid", "loc": ["body"], "msg": "the body is no JSON in UTF-8"}]
        return _malformed(request.scope, detail)
    return _answer(request.scope, error.status_code, {"detail": error.detail}, error.headers)


def _printable(part: str | int) -> str | int:
    return part.encode("utf-8", "replace").decode() if isinstance(part, str) else part


def install_handlers(app: FastAPI) -> None:
    """Register the handlers of lease errors and bad input."""
    app.add_exception_handler(LeaseError, _lease_error)
    app.add_exception_handler(RequestValidationError, _bad_input)
    app.add_exception_handler(HTTPException, _http_error)
