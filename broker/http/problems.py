"""Errors as HTTP answers: always `detail` and `code`, and what to do about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent_sdk.errors import CODES, BadRequest, LeaseError, LeaseLost, NoCapacity, UnknownToken
from broker.http.ignored import ignored_in
from broker.logs import note
from broker.text.printable import printable

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from starlette.responses import Response

SOONEST_RETRY_S = 1

NO_OBJECT: Final = "dataclass_type"
"""Pydantic's type of the error for a body that is no object."""

NO_TEXT = 400
"""FastAPI's status for a body that it cannot decode."""


def problem(error: LeaseError) -> JSONResponse:
    """Return the HTTP answer for a lease error."""
    note(code=error.code)
    status = CODES[error.code].status
    if isinstance(error, UnknownToken):
        return JSONResponse({"detail": "unknown_token", "code": error.code}, status)
    if isinstance(error, LeaseLost):
        return JSONResponse({"detail": "lost", "reason": error.code, "code": error.code}, status)
    if isinstance(error, BadRequest):  # in the form of FastAPI's own errors
        detail = [{"type": error.code, "loc": ["body"], "msg": str(error)}]
        return JSONResponse({"detail": detail, "code": error.code}, status)
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
    return JSONResponse(body, status, headers)


async def _lease_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LeaseError)  # noqa: S101 - registered for nothing else
    return problem(error)


async def _bad_input(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 without the input: a NaN or a lone surrogate in an echo would be a 500."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    detail = [
        {"type": e["type"], "loc": [_printable(part) for part in e["loc"]], "msg": e["msg"]}
        for e in error.errors()
    ]
    if detail and detail[0]["type"] == NO_OBJECT:
        detail[0]["msg"] = _no_object(request.headers.get("content-type", ""))
    ignored = ignored_in(request.scope.get("route"), error.body)
    return JSONResponse({"detail": detail} | ({"ignored": ignored} if ignored else {}), 422)


def _no_object(content_type: str) -> str:
    """Return the reason for which a body was not read as a JSON object."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return "the body must be a JSON object"
    sent = printable(content_type)[:80] or "none"
    return f"the header Content-Type must be application/json for a JSON body; it was {sent}"


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer FastAPI's own errors; a body that is no text is malformed like any other."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    if error.status_code == NO_TEXT:
        detail = [{"type": "json_invalid", "loc": ["body"], "msg": "the body is no JSON in UTF-8"}]
        return JSONResponse({"detail": detail}, 422)
    return await http_exception_handler(request, error)


def _printable(part: str | int) -> str | int:
    return part.encode("utf-8", "replace").decode() if isinstance(part, str) else part


def install_handlers(app: FastAPI) -> None:
    """Register the handlers of lease errors and bad input."""
    app.add_exception_handler(LeaseError, _lease_error)
    app.add_exception_handler(RequestValidationError, _bad_input)
    app.add_exception_handler(HTTPException, _http_error)
