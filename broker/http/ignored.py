"""Unknown fields of a request: the service ignores them, and the answer names them."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from broker.http.document.described import DescribedRoute
from broker.text.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.requests import Request
    from starlette.responses import Response

JSON: Final = "application/json"

PROBLEM_JSON: Final = "application/problem+json"
"""Media type of errors of RFC 9457."""

MOST_NAMES: Final = 20

MOST_LETTERS: Final = 64


class NamesIgnored(DescribedRoute):
    """Route with an answer that lists the ignored fields of the body, if there are any."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler of a route that takes a body."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handler(request: Request) -> Response:
            response = await handle(request)
            names = ignored_in(self, await request.json())  # parsed once, and kept
            return _with(response, names) if names else response

        return handler


def ignored_in(route: object, body: object) -> list[str]:
    """Return the names in a body that a route does not know, printable and cut."""
    if not isinstance(route, APIRoute) or route.body_field is None or not isinstance(body, dict):
        return []
    kind: Any = route.body_field.field_info.annotation
    known = names_of(kind)
    unknown = [printable(name)[:MOST_LETTERS] for name in body if name not in known]
    return unknown[:MOST_NAMES]


@cache
def names_of(body: Any) -> frozenset[str]:
    """Return the names of the fields of a request's body, aliases included."""
    hints = get_type_hints(body, include_extras=True)
    names = {field.name for field in dataclasses.fields(body)}
    for hint in hints.values():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, FieldInfo) and isinstance(extra.validation_alias, AliasChoices):
                names |= {name for name in extra.validation_alias.choices if isinstance(name, str)}
    return frozenset(names)


def _with(response: Response, names: list[str]) -> Response:
    """Add the names to an answer that is a JSON object."""
    if response.headers.get("content-type") not in {JSON, PROBLEM_JSON}:
        return response
    content = json.loads(bytes(response.body))
    if not isinstance(content, dict):
        return response
    headers = {k: v for k, v in response.headers.items() if k != "content-length"}
    return JSONResponse(content | {"ignored": names}, response.status_code, headers)
