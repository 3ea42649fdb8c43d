"""Routes whose answers the document types: a start builds none of these types.

FastAPI builds a validator for each type of each answer of each route that it is given. The service
describes these answers and does not check them. So the routes that answer have no such types, and
the document is made of twins that do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute

if TYPE_CHECKING:
    from collections.abc import Callable

    Statuses = dict[int | str, dict[str, Any]]


class DescribedRoute(APIRoute):
    """Route with a description of its answers for the document.

    Args:
        path: of its requests.
        endpoint: answers them.
        responses: its statuses; their types are for the document alone.
        options: FastAPI's others.

    Attributes:
        described: makes its twin for the document.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        responses: Statuses | None = None,
        **options: Any,
    ) -> None:
        self.described = partial(APIRoute, path, endpoint, responses=responses, **options)
        super().__init__(path, endpoint, responses=_untyped(responses or {}), **options)


def _untyped(responses: Statuses) -> Statuses:
    """Return the statuses without the types of their answers."""
    return {
        status: {name: value for name, value in about.items() if name != "model"}
        for status, about in responses.items()
    }
