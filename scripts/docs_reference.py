"""The generated parts of docs/reference: commands, errors, routes and signatures, as in the code.

A part stands between `<!-- generated: NAME -->` and `<!-- /generated -->`. Run it after a change of
any of them: `.venv/bin/python scripts/docs_reference.py`. A test compares page and code.
"""

from __future__ import annotations

import re
from inspect import Parameter, getdoc, signature
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeGuard

import click
from fastapi.routing import APIRoute

from agent_sdk import GPUOrchestratorClient, Lease, LeaseClient, Store, shared, testing
from agent_sdk.errors import CODES
from agent_sdk.leases.lease import HeldLease
from agent_sdk.request import LeaseOptions
from agent_sdk.verbs.steps import Verb
from broker.app import build_app
from broker.cli import main as gpu_broker
from broker.http.auth import AtLeast
from broker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"

WIDTH = 90
"""Columns of a command's help."""


def table(*rows: tuple[str, ...]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def commands() -> str:
    """Return the help of every command, each under its own heading."""
    return "\n\n".join(
        f"## {path}\n\n```text\n{text.rstrip()}\n```" for path, text in _helps(gpu_broker, None)
    )


def _helps(command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    name = "gpu-broker" if parent is None else command.name
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for found in command.list_commands(context):
            if inner := command.get_command(context, found):
                yield from _helps(inner, context)


def errors() -> str:
    """Return every code with its class, its HTTP status and its meaning."""
    rows = [
        (f"`{name}`", f"`{code.error.__name__}`", str(code.status),
         "yes" if code.retryable else "no", code.says.replace("|", "\\|"))
        for name, code in CODES.items()
    ]  # fmt: skip
    return table(("Code", "Class", "HTTP", "Retry", "Says"), *rows)


def routes() -> str:
    """Return every route with the role that it needs and what it is for."""
    rows = [
        (f"`{method} {path}`", _role(route), operation["summary"], _first(operation))
        for route, method, path, operation in _operations()
    ]
    return table(("Route", "Role", "Asks", "Answer"), *rows)


def _operations() -> Iterator[tuple[APIRoute, str, str, dict[str, Any]]]:
    app = build_app(Settings())
    made = app.openapi()
    document = made["paths"] | made["x-streams"]
    for route in filter(_is_api, app.routes):
        for method in sorted(route.methods - {"HEAD"}):
            if operation := document.get(route.path, {}).get(method.lower()):
                yield route, method, route.path, operation


def _is_api(route: object) -> TypeGuard[APIRoute]:
    return isinstance(route, APIRoute)


def _role(route: APIRoute) -> str:
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, AtLeast):
            return dependency.call.role
    return "none"


def _first(operation: dict[str, Any]) -> str:
    paragraph: str = operation.get("description", "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


INNER = {
    "abandon", "accept", "attend", "claim", "end", "held", "keeper", "lose",
    "lose_if_over", "reap", "report",
    "require_own", "scene", "scene_again", "wait_for",
}  # fmt: skip
"""Methods that the package itself calls."""


def signatures() -> str:
    """Return the methods of the SDK with their signatures, a table for each class."""
    types = LeaseOptions.__annotations__
    options = [
        (f"`{name}: {_plain(types[name])}`", says) for name, says in _attributes(LeaseOptions)
    ]
    held = [(f"`{name}`", says) for name, says in _attributes(HeldLease)]
    pool = [_row(testing.running_broker), _row(testing.TestBroker.environment)]
    parts = [
        ("agent_sdk", table(("Function", "Does"), _row(shared.lease))),
        ("LeaseClient", table(("Method", "Does"), *_methods(LeaseClient))),
        ("Options of acquire and lease", table(("Option", "Is"), *options)),
        ("Lease", table(("Method, property, attribute", "Does, is"), *_methods(Lease), *held)),
        ("Store", table(("Method", "Does"), *_methods(Store))),
        ("GPUOrchestratorClient", table(("Method", "Does"), *_methods(GPUOrchestratorClient))),
        ("agent_sdk.testing", table(("Function", "Does"), *pool)),
    ]
    return "\n\n".join(f"### {title}\n\n{rows}" for title, rows in parts)


def _methods(kind: type) -> Iterator[tuple[str, str]]:
    if kind is not Lease:  # clients make leases
        yield _row(kind.__init__, kind.__name__, _sentence(kind))
    seen = set(INNER)
    for each in kind.__mro__:
        for name, member in each.__dict__.items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            if isinstance(member, property):
                typed = _plain(member.fget.__annotations__["return"])
                yield f"`{name}: {typed}`", _sentence(member)
            elif isinstance(member, classmethod):
                yield _row(member.__func__, f"{kind.__name__}.{name}")
            elif isinstance(member, (FunctionType, Verb)):
                function = member.__get__(None, kind)
                yield _row(function, name)


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the attributes that a class's docstring lists, each with its meaning."""
    listed = (getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    for row in re.split(r"\n    (?! )", f"\n{listed}")[1:]:
        name, _, says = " ".join(row.split()).partition(": ")
        yield name, says.replace("|", "\\|")


def _row(function: Any, name: str = "", says: str = "") -> tuple[str, str]:
    """Return a function's row, without its self."""
    found = signature(function)
    shown = [each for key, each in found.parameters.items() if key not in {"self", "cls"}]
    words, starred = [], False
    for each in shown:
        if each.kind is Parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        words.append(_argument(each))
    returns = _plain(found.return_annotation)
    end = "" if returns in {"None", "empty"} else f" -> {returns}"
    return f"`{name or function.__name__}({', '.join(words)}){end}`", says or _sentence(function)


def _argument(each: Parameter) -> str:
    if each.kind is Parameter.VAR_KEYWORD:
        return "**fields" if "Policy" in str(each.annotation) else "**options"
    default = "" if each.default is Parameter.empty else f" = {each.default!r}"
    return f"{each.name}: {_plain(each.annotation)}{default}"


def _plain(annotation: Any) -> str:
    """Return a type as a reader has it: what the steps of a verb give, and `or` for a bar."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "empty")
    text = getattr(annotation, "__forward_arg__", text)
    if match := re.fullmatch(r"(?:Steps|Iterator)\[(.*)\]", text):
        text = match[1]
    return text.replace(" | ", " or ")


def _sentence(member: Any) -> str:
    """Return the first sentence of a docstring."""
    text = " ".join((getdoc(member) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0].replace("|", "\\|")


PARTS = {"cli.md": commands, "errors.md": errors, "http.md": routes, "sdk.md": signatures}
"""Each page with a generated part, and what makes that part."""


def current(page: str) -> str:
    """Return a page's text with its generated part as the code has it now."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- generated: .*? -->\n).*?(\n<!-- /generated -->)", re.DOTALL)
    made = PARTS[page]()
    found, count = marked.subn(lambda match: f"{match[1]}\n{made}\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"{page} needs one place for its generated part, and has {count}")
    return found


if __name__ == "__main__":
    for name in PARTS:
        (REFERENCE / name).write_text(current(name), encoding="utf-8")
        print(f"docs/reference/{name}")
