"""The import graph of the packages: which module needs which, and which room needs which.

A room is a folder of modules; a module directly in `agent_sdk/` or `broker/` is a room of its own.
Imports for types alone do not count: they bring nothing when a module is loaded.
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

ROOT = Path(__file__).parents[1]

PACKAGES = ("agent_sdk", "broker")

HOUSES = ("broker.devices", "broker.http", "broker.metrics")
"""Rooms that have rooms of their own inside; seen from outside they are one."""

FLOORS: tuple[set[str], ...] = (
    {f"agent_sdk.{x}" for x in ("clock", "errors", "fork", "keys", "lazy", "threads")},
    {"agent_sdk.evidence", "agent_sdk.policy"},
    {"agent_sdk.teams"},
    {"agent_sdk.protocol"},
    {f"agent_sdk.{x}" for x in ("engines", "http_request", "scripts", "state")},
    {f"agent_sdk.{x}" for x in ("attach", "bulk_revoke", "renewal", "store", "usage")},
    {"agent_sdk.leases", "agent_sdk.settings"},
    {"agent_sdk.request"},
    {"agent_sdk.orchestrator", "agent_sdk.pool_client"},
    {"agent_sdk.verbs"},
    {"agent_sdk.aio", "agent_sdk.client"},
    {"agent_sdk", "agent_sdk.shared"},
    {"agent_sdk.testing"},
    {"agent_sdk.notebook"},
    {
        f"broker{x}"
        for x in (
            "",
            ".address_rate",
            ".dashboard",
            ".identity",
            ".mcp_terms",
            ".path_prefix",
            ".skills",
            ".tasks",
        )
    },
    {"broker.key_file", "broker.maintenance", "broker.serializers", "broker.text"},
    {f"broker.{x}" for x in ("api_keys", "devices", "hooks", "live", "logs", "run", "worker")},
    {f"broker.{x}" for x in ("attribution", "hold", "metrics", "replica", "settings")},
    {"broker.http", "broker.mcp", "broker.reporter", "broker.systemd"},
    {"broker.app", "broker.cli", "broker.workers"},
    {f"broker.cli.{x}" for x in ("leasing", "past", "policies", "serving")},
    {f"broker.cli.commands{x}" for x in ("", ".by_hand", ".for_agents", ".for_operators")},
)
"""The rooms from the lowest floor to the highest: a room imports from the floors below it alone."""


@cache
def modules() -> dict[str, Path]:
    """Return every module of the packages by its full name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def needs() -> dict[str, frozenset[str]]:
    """Return the modules that each module imports, at any time but for types alone."""
    return {name: frozenset(_imported(name, path)) for name, path in modules().items()}


def _imported(name: str, path: Path) -> Iterator[str]:
    for node in _run_nodes(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [
                full if (full := f"{node.module}.{alias.name}") in modules() else node.module
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (each for each in names if each in modules() and each != name)


def _run_nodes(parent: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes that a run of the module may reach."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.orelse:
                yield each
                yield from _run_nodes(each)
            continue
        yield node
        yield from _run_nodes(node)


def room_of(module: str) -> str:
    """Return the room of a module."""
    folder = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    if folder in PACKAGES:
        return module
    return next((house for house in HOUSES if f"{folder}.".startswith(f"{house}.")), folder)


def room_needs() -> dict[str, set[str]]:
    """Return the rooms that each room imports from."""
    found: dict[str, set[str]] = {}
    for module, imported in needs().items():
        rooms = found.setdefault(room_of(module), set())
        rooms |= {room_of(each) for each in imported} - {room_of(module)}
    return found


def circle(graph: Mapping[str, AbstractSet[str]]) -> list[str]:
    """Return the nodes of one circle, the first of them again at its end; empty: there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []
