"""Frequent routes as plain ASGI, from the description that FastAPI has of them.

FastAPI's layers, its routing and its dependencies take more than half of the time of a short
request. So an ordinary request of a frequent route is answered here, with the same checks, and the
same endpoint. Any other one, with a fault or just unusual, is FastAPI's, which is given all that
was read of it: each route has one description, and each fault has one answer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.requests import Request

from agent_sdk.errors import LeaseError
from broker.http.auth import AtLeast
from broker.http.ignored import names_of
from broker.http.problems import problem
from broker.path_prefix import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_TYPES: Final = frozenset(
    {b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"}
)
"""Content types of an ordinary request; FastAPI takes more."""


ANYTHING: Final = TypeAdapter(Any)


class FastJSON(JSONResponse):
    """JSON answer of a frequent route, by pydantic's encoder: same bytes, four times as fast."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return ANYTHING.dump_json(content)


class HotRoute:
    """Frequent route: a POST with a JSON object, the request and the principal as its parameters.

    Args:
        route: FastAPI's description of it.

    Raises:
        TypeError: it has other parameters.
    """

    def __init__(self, route: APIRoute) -> None:
        needs = route.dependant
        principal = needs.dependencies[0] if len(needs.dependencies) == 1 else None
        role = principal and principal.call
        if (
            route.methods != {"POST"}
            or route.body_field is None
            or needs.request_param_name is None
            or needs.path_params + needs.query_params + needs.header_params + needs.cookie_params
            or principal is None
            or not isinstance(role, AtLeast)
        ):
            raise TypeError(f"{route.path} is no POST of a body, a request and a principal alone")
        kind: Any = route.body_field.field_info.annotation
        self._route = route
        self._body, self._request = needs.body_params[0].name, needs.request_param_name
        self._who, self._role = str(principal.name), role
        self._known = names_of(kind)
        self._validate = TypeAdapter(kind).validate_python

    def arguments(self, scope: Scope, body: bytes) -> dict[str, Any] | None:
        """Return the endpoint's arguments but for the request; None: FastAPI answers."""
        who = scope["principal"]
        if not self._role.admits(who):
            return None
        try:
            said = json.loads(body)  # as Starlette reads it, and not as pydantic does
            if not isinstance(said, dict) or not said.keys() <= self._known:
                return None
            return {self._body: self._validate(said), self._who: who}
        except (ValueError, RecursionError):
            return None

    async def answer(self, request: Request, arguments: dict[str, Any]) -> Response:
        """Return what the endpoint answers."""
        request.scope["route"] = self._route
        try:
            response: Response = await self._route.endpoint(**arguments, **{self._request: request})
        except LeaseError as error:
            return problem(error, request.scope)
        return response


class HotRoutes:
    """ASGI application that answers ordinary requests of the frequent routes.

    Args:
        app: the application, for the state that endpoints read.
        behind: answers all other requests.
        routes: the frequent routes.
        most_bytes: the largest body.
    """

    def __init__(
        self, app: Starlette, behind: ASGIApp, routes: Iterable[BaseRoute], most_bytes: int
    ) -> None:
        self._app = app
        self._behind = behind
        self._most_bytes = most_bytes
        self._hot = {each.path: HotRoute(each) for each in routes if isinstance(each, APIRoute)}

    @property
    def paths(self) -> set[str]:
        """Paths of the frequent routes."""
        return set(self._hot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have FastAPI answer it."""
        hot = self._hot.get(path_of(scope)) if scope["method"] == "POST" else None
        if hot is None or not self._ordinary(scope["headers"]):
            await self._behind(scope, receive, send)
            return
        read = [await receive()]
        while read[-1].get("more_body"):
            read.append(await receive())
        arguments = hot.arguments(scope, b"".join(part.get("body", b"") for part in read))
        if arguments is None or read[-1]["type"] != "http.request":
            await self._behind(scope, _again(read, receive), send)
            return
        scope["app"] = self._app
        try:
            response = await hot.answer(Request(scope, receive, send), arguments)
        except Exception:
            await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
            raise  # the server logs it
        start = {"type": "http.response.start", "status": response.status_code}
        await send(start | {"headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body})

    def _ordinary(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Tell whether a body of JSON follows, of a known and allowed length."""
        said = dict(headers)
        if len(said) != len(headers) or said.get(b"content-type") not in JSON_TYPES:
            return False
        length = said.get(b"content-length", b"")
        return length.isdigit() and int(length) <= self._most_bytes


def _again(messages: Iterable[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives these messages first."""
    first: Iterator[Message] = iter(messages)

    async def receive_again() -> Message:
        message = next(first, None)
        return await receive() if message is None else message

    return receive_again
