"""Sentences of the code: first words of docstrings, and things that are no persons."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

FORBIDDEN = re.compile(
    r"(what|who|whose|whom|of|whether|until|as|how|why|when|where|which|that|if|so)\b",
    re.IGNORECASE,
)
"""First words that begin no imperative and no noun phrase."""

PERSONS = re.compile(r"\b(who|whom|whoever|nobody|somebody|everybody)\b", re.IGNORECASE)


def docstrings(text: str) -> Iterator[str]:
    """Yield docstrings, and the strings below constants, of a Python source."""
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                value = child.value.value
                if isinstance(value, str):
                    yield value.strip()


def sources(*patterns: str) -> list[Path]:
    """List the files of the checkout that match, without files of others."""
    found = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return [path for path in found if "vendor" not in path.parts]


@pytest.mark.parametrize("folder", ["agent_sdk", "broker", "scripts", "tests"])
def test_docstrings_begin_with_a_verb_or_a_noun(folder: str) -> None:
    """No docstring begins with a question word or a conjunction."""
    paths = sources(f"{folder}/**/*.py")
    assert paths
    wrong = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path in paths
        for text in docstrings(path.read_text(encoding="utf-8"))
        if FORBIDDEN.match(text)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["agent_sdk", "broker"])
def test_things_are_no_persons(folder: str) -> None:
    """A docstring of the packages names the waiter, the client, the process."""
    wrong = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in sources(f"{folder}/**/*.py")
        for text in docstrings(path.read_text(encoding="utf-8"))
        if PERSONS.search(text)
    ]
    assert wrong == []


def test_lines_of_lua_fit() -> None:
    """100 columns, but for the heads of verbs, which are tables that a test parses."""
    wrong = []
    for path in sources("lua/**/*.lua"):
        lines = path.read_text(encoding="utf-8").splitlines()
        head = next(n for n, line in enumerate(lines) if not line.startswith("--"))
        first = head if path.parent.name == "lua" else 0
        long = (n for n, line in enumerate(lines) if n >= first and len(line) > 100)
        wrong += [f"{path.relative_to(ROOT)}:{n + 1}" for n in long]
    assert wrong == []
