"""The page's modules: no circle, small files, words apart from markup."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter

import pytest

from agent_sdk.state.finding_kinds import KINDS
from broker.dashboard import FOLDER

MODULES = {path.name: path.read_text() for path in FOLDER.glob("*.js")}

IMPORTED = re.compile(
    r"^(?:import|export)\b[^;]*?from\s+\"\./([\w/.-]+)\";", re.MULTILINE | re.DOTALL
)

LATE = re.compile(r"\bimport\(\"\./([\w/.-]+)\"\)")

PLAIN = {
    "address.js",
    "colours.js",
    "describe.js",
    "ends.js",
    "figures.js",
    "format.js",
    "state.js",
    "trends.js",
    "usage_data.js",
    "words.js",
}
"""Modules that make no element: a test or another page can use their words."""

COLUMNS = 100

LINES = 300


def imports(name: str, *, late: bool = True) -> set[str]:
    """The modules that one imports, by their files; `late`: once it needs them, too."""
    found = IMPORTED.findall(MODULES[name])
    return {*found, *(LATE.findall(MODULES[name]) if late else [])}


def reached(name: str, *, late: bool = True) -> set[str]:
    """A module, and what it imports directly and through others."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        each = ahead.pop()
        if each in MODULES and each not in found:
            found.add(each)
            ahead += imports(each, late=late)
    return found


def test_modules_import_each_other_in_no_circle() -> None:
    """Every import is of a file that is there, and leads downwards."""
    graph = {name: imports(name) for name in MODULES}
    assert "describe.js" in graph["markup.js"]  # the pattern finds imports
    assert {name for to in graph.values() for name in to if not (FOLDER / name).exists()} == set()
    tuple(TopologicalSorter(graph).static_order())


def test_every_module_is_used() -> None:
    """By the page itself or by another module."""
    page = (FOLDER / "index.html").read_text()
    used = {name for each in MODULES for name in imports(each)}
    assert {n for n in MODULES if n not in used and f"static/{n}" not in page} == set()


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_words_are_apart_from_markup(name: str) -> None:
    """Directly and through what they import."""
    for each in reached(name):
        assert "vendor/lit-html.js" not in imports(each), f"{name} makes elements, through {each}"


def test_view_of_use_is_loaded_late() -> None:
    """The page without it has none of its modules."""
    late = {"usage.js", "usage_areas.js", "usage_heat.js", "usage_table.js", "past_leases.js"}
    assert reached("main.js") >= late
    assert reached("main.js", late=False) & (late | {"usage_data.js"}) == set()


def test_files_are_small() -> None:
    """Each can be read at a sitting."""
    texts = MODULES | {path.name: path.read_text() for path in FOLDER.glob("*.css")}
    assert {n: len(t.splitlines()) for n, t in texts.items() if len(t.splitlines()) >= LINES} == {}
    long = [line for text in MODULES.values() for line in text.splitlines() if len(line) > COLUMNS]
    assert long == []


def test_findings_are_said_as_they_are_declared() -> None:
    """The page has the words of the one declaration."""
    said = dict(re.findall(r"^  (\w+):\s+\"(.*)\",$", MODULES["words.js"], re.MULTILINE))
    assert {word: said[word] for word in KINDS} == {
        word: kind.means for word, kind in KINDS.items()
    }
