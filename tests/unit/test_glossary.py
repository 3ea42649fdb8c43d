"""The glossary: its terms are names of ours, its retired words are gone, class names are unique."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from agent_sdk.state.events import NAMES

ROOT = Path(__file__).parents[2]

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")

RETIRED = (ROOT / "docs" / "design" / "retired-words.md").read_text(encoding="utf-8")

PLACES = ("agent_sdk", "broker", "lua", "scripts", "deploy", "docs", "tests")

KINDS = {".py", ".lua", ".md", ".js", ".html", ".css", ".yml", ".yaml", ".json", ".sh", ".acl"}

NOT_OURS = (
    "docs/design/retired-words.md",
    "tests/unit/test_glossary.py",
    "scripts/bench/results/",
    "/vendor/",
)
"""The list itself and its test; results of earlier versions; what others wrote."""

ALLOWED = {
    ("agent_sdk/store/server_binary.py", "unfit"),  # programs that are no server
    ("tests/unit/test_embedded_server.py", "unfit"),
}
"""(file, word): plain English, and no name of ours today."""


def table(page: str, first: str) -> list[list[str]]:
    """Read the rows of a page's tables whose first heading this is."""
    parts = [part.partition("\n\n")[0] for part in page.split(f"\n| {first} |")[1:]]
    lines = [line for part in parts for line in part.splitlines()[2:]]
    return [line.strip("|").split("|") for line in lines]


def quoted(cell: str) -> list[str]:
    """List what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def retired(kind: str) -> list[str]:
    """List the words that are retired in that place: any, event, file or class."""
    rows = table(RETIRED, "Retired")
    return [word for old, _, place in rows if place.strip() == kind for word in quoted(old)]


@cache
def sources() -> dict[str, str]:
    """Read every text file of the project, by its path."""
    paths = [ROOT / "README.md", *(p for place in PLACES for p in (ROOT / place).rglob("*"))]
    named = ((path, path.relative_to(ROOT).as_posix()) for path in paths)
    return {
        name: path.read_text(encoding="utf-8")
        for path, name in named
        if path.suffix in KINDS and path.is_file() and not any(x in name for x in NOT_OURS)
    }


@cache
def classes() -> Counter[str]:
    """Count the definitions of each class in the SDK and the broker."""
    return Counter(
        node.name
        for name, text in sources().items()
        if name.endswith(".py") and name.startswith(("agent_sdk/", "broker/"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    )


@pytest.mark.parametrize("word", sorted(set(retired("any"))))
def test_retired_word_stands_nowhere(word: str) -> None:
    """No code, key, page or test says it; longer names that contain it are other names."""
    exact = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", re.IGNORECASE)
    said = {name for name, text in sources().items() if exact.search(text)}
    assert said <= {name for name, allowed in ALLOWED if allowed == word}


def test_allowed_exceptions_are_needed() -> None:
    """Each exception names a file that still says the word."""
    assert {(name, word) for name, word in ALLOWED if word not in sources()[name]} == set()


def test_retired_event_is_in_no_list() -> None:
    """Neither the SDK nor a script has an event of a retired name."""
    lua = "\n".join(text for name, text in sources().items() if name.startswith("lua/"))
    for word in retired("event"):
        assert word not in NAMES
        assert f"event('{word}'" not in lua


def test_retired_file_is_not_there() -> None:
    """No file of the scripts' library has a retired name."""
    names = {path.stem for path in (ROOT / "lua" / "lib").glob("*.lua")}
    assert names
    assert not names & set(retired("file"))


def test_retired_class_is_not_defined() -> None:
    """No class of the SDK or the broker has a retired name."""
    assert classes()
    assert not classes().keys() & set(retired("class"))


def test_class_name_is_defined_once() -> None:
    """A name says which class is meant, in the SDK and the broker together."""
    assert [name for name, count in classes().items() if count > 1] == []


@pytest.mark.parametrize(
    ("term", "shows"), [(row[0].strip(), row[2]) for row in table(GLOSSARY, "Term")]
)
def test_term_shows_where_the_glossary_says(term: str, shows: str) -> None:
    """Each name that stands beside a term is a name of the code or of the store."""
    code = "\n".join(
        text for name, text in sources().items() if name.startswith(("agent_sdk", "broker", "lua"))
    )
    assert quoted(shows), term
    for name in quoted(shows):
        last = name.rpartition(".")[2] if name[0].islower() and "." in name else name
        assert last in code or name.replace("{POOL}", "{*}") in code, name
