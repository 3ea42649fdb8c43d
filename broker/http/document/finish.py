"""The OpenAPI document: fields' meanings, errors' media types, streams apart.

A generated client calls what stands in `paths`, and reads the answer to its end. Streams have none:
so they stand in `x-streams`, in the same form, where generators do not look.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from fastapi.openapi.utils import get_openapi
from typing_extensions import get_original_bases, is_typeddict

from agent_sdk.state import explain, placement, reservations
from broker.http import requests
from broker.http.document import models
from broker.http.document.described import DescribedRoute
from broker.http.document.examples import ANSWERS, REQUESTS
from broker.http.ignored import JSON, PROBLEM_JSON
from broker.serializers import device_models, lease_models

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

STREAM: Final = "text/event-stream"

FIELD: Final = re.compile(r" {4}(?P<names>\w+(?:, \w+)*): (?P<says>.*(?:\n {5,}.*)*)")
"""Line of a docstring's "Attributes", with the lines that go on."""

ATTRIBUTES: Final = "Attributes:\n"


def document_of(app: FastAPI) -> dict[str, Any]:
    """Make the document of an application, which takes some tenths of a second."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        contact=app.contact,
        license_info=app.license_info,
        tags=app.openapi_tags,
        routes=[each.described() for each in app.routes if isinstance(each, DescribedRoute)],
    )
    for path, method, operation in _operations(document):
        _exemplify(operation, REQUESTS.get((method, path)), ANSWERS.get((method, path)))
        for response in operation["responses"].values():
            content = response.get("content", {})
            content.get(JSON, {}).get("schema", {}).pop("title", None)  # the operation's id
            if content.get(JSON) == _PROBLEM:
                content[PROBLEM_JSON] = _PROBLEM
    _tell_meanings(document["components"]["schemas"])
    paths, streams = document["paths"], {}
    for path in [path for path, item in paths.items() if _is_stream(item)]:
        streams[path] = paths.pop(path)
    return document | {"paths": paths, "x-streams": streams}


_PROBLEM: Final = {"schema": {"$ref": "#/components/schemas/Problem"}}


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _is_stream(item: dict[str, Any]) -> bool:
    return any(STREAM in each["responses"]["200"]["content"] for each in item.values())


def _exemplify(operation: dict[str, Any], request: Any, answer: Any) -> None:
    """Add the examples of an operation."""
    if request is not None:
        operation["requestBody"]["content"][JSON]["example"] = request
    if answer is not None:
        for content in operation["responses"]["200"]["content"].values():
            content["example"] = answer


def _tell_meanings(schemas: dict[str, Any]) -> None:
    """Move the meanings of fields from the description of a type to the fields."""
    for name, kind in _types().items():
        schema = schemas.get(name, {})
        if "description" in schema:
            schema["description"] = schema["description"].partition(ATTRIBUTES)[0].strip()
        meanings = _meanings(kind)
        for field, of in schema.get("properties", {}).items():
            of.pop("title", None)  # the name again
            if field in meanings and "$ref" not in of:
                of.setdefault("description", meanings[field])


def _types() -> dict[str, type]:
    """Return the types of requests and answers by their names in the document."""
    known = (explain, placement, reservations, models, requests, device_models, lease_models)
    found = [each for module in known for each in vars(module).values() if isinstance(each, type)]
    return {each.__name__: each for each in found}


def _meanings(kind: type) -> dict[str, str]:
    """Return the meanings of a type's fields, those of its bases first."""
    found: dict[str, str] = {}
    for base in get_original_bases(kind) if is_typeddict(kind) else kind.__mro__[1:]:
        if isinstance(base, type):
            found |= _meanings(base)
    attributes = inspect.cleandoc(kind.__doc__ or "").partition(ATTRIBUTES)[2]
    for match in FIELD.finditer(attributes):
        says = " ".join(match["says"].split())
        found |= dict.fromkeys(match["names"].split(", "), says[:1].upper() + says[1:])
    return found
