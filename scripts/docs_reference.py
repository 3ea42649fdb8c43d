"""The generated parts of docs/reference: commands, errors and routes, as the code has them.

A part stands between `<!-- generated: NAME -->` and `<!-- /generated -->`. Run it after a change of
any of them: `.venv/bin/python scripts/docs_reference.py`. A test compares page and code.
"""

from __future__ import annotations

import re
from inspect import getclosurevars
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeGuard

import click
from fastapi.routing import APIRoute

from agent_sdk.errors import CODES
from broker.app import build_app
from broker.cli import main as gpu_broker
from broker.http import health, leases, operators, pool, scrape, streams
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
    document = build_app(Settings()).openapi()["paths"]
    for router in (part.router for part in (leases, health, pool, scrape, operators, streams)):
        for route in filter(_is_api, router.routes):
            for method in sorted(route.methods - {"HEAD"}):
                if operation := document.get(route.path, {}).get(method.lower()):
                    yield route, method, route.path, operation


def _is_api(route: object) -> TypeGuard[APIRoute]:
    return isinstance(route, APIRoute)


def _role(route: APIRoute) -> str:
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, FunctionType):
            known = getclosurevars(dependency.call).nonlocals
            if "role" in known:  # of `auth.at_least`
                return str(known["role"])
    return "none"


def _first(operation: dict[str, Any]) -> str:
    paragraph: str = operation.get("description", "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


PARTS = {"cli.md": commands, "errors.md": errors, "http.md": routes}
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
