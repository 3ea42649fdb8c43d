"""The pages of docs/: one site, links that lead somewhere, tables as the code has them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from agent_sdk.errors import CODES
from agent_sdk.protocol.messages import SCHEMA
from broker.cli import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def named(nav: list[object]) -> Iterator[str]:
    """The pages that a menu names, in its order."""
    for item in nav:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            for inner in item.values():
                yield from named(inner if isinstance(inner, list) else [inner])


def test_menu_names_every_page_once() -> None:
    """And no page that is not there: `make check` builds the site, strictly."""
    assert sorted(map(Path, named(SITE["nav"]))) == PAGES


def test_check_builds_the_site_strictly() -> None:
    """And not quietly: with --quiet, mkdocs counts no warnings, and --strict has none to refuse."""
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    (build,) = (line for line in recipe[1].splitlines() if "mkdocs" in line)
    assert "--strict" in build
    assert "-q" not in build


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkout with the site's own settings and two pages."""
    own = {key: value for key, value in SITE.items() if key not in {"nav", "plugins"}}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(own))
    (tmp_path / "docs").mkdir()
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "docs_links.py", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## There\n")
    return tmp_path


def build(checkout: Path, link: str) -> subprocess.CompletedProcess[str]:
    """A strict build of a site with this link in it."""
    (checkout / "docs" / "index.md").write_text(f"# Home\n\n[a link]({link})\n")
    return run("-m", "mkdocs", "build", "--strict", cwd=checkout)


def test_link_out_of_the_site_leads_to_the_repository(small: Path) -> None:
    """Relative in the repository, absolute on the site."""
    built = build(small, "../pyproject.toml#L1")
    assert built.returncode == 0, built.stderr
    page = (small / "dist" / "site" / "index.html").read_text()
    assert re.search(r'href="https://[^"]+/blob/main/pyproject.toml#L1"', page)


@pytest.mark.parametrize("link", ["nowhere.md", "other.md#nowhere", "../deploy/nowhere.yml"])
def test_link_that_leads_nowhere_ends_the_build(small: Path, link: str) -> None:
    """To a page, to a heading, to a file of the repository."""
    built = build(small, link)
    assert built.returncode != 0
    assert "nowhere" in built.stderr


def test_generated_parts_are_current() -> None:
    """Commands, errors, routes and signatures: `make docs-reference` writes them anew."""
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import docs_reference as d\n"
        "for p in d.PARTS: print(p, d.current(p) == (d.REFERENCE / p).read_text())"
    )
    said = run("-c", code)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == [
        "cli.md True", "errors.md True", "http.md True", "sdk.md True",
    ]  # fmt: skip


def test_reference_names_every_command_and_error() -> None:
    """Each has its row or its heading, and nothing else has one."""

    def cells(page: str) -> set[str]:
        text = (DOCS / "reference" / page).read_text()
        return set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))

    headings = re.findall(
        r"^## gpu-broker ([\w-]+)$", (DOCS / "reference" / "cli.md").read_text(), re.MULTILINE
    )
    assert headings == list(COMMANDS)
    assert CODES.keys() <= cells("errors.md")


def test_upgrading_names_the_schema_of_this_version() -> None:
    """An operator compares it with what the pool says."""
    page = (DOCS / "how-to" / "upgrading.md").read_text()
    assert f"`schema` (now {SCHEMA})" in page


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page_says_for_whom_it_is(page: Path) -> None:
    """Its first sentence, below the title."""
    title, _, begin, *_ = (DOCS / page).read_text().splitlines()
    assert title.startswith("# ")
    assert re.match(r"(\*\*For\*\*|For) ", begin), begin


def test_questions_of_the_index_lead_to_every_page_for_users() -> None:
    """A page that no question leads to is found by its title alone, or not at all."""
    index = (DOCS / "index.md").read_text()
    questions = re.findall(r"^\| [^|]+\? \| \[[^]]+\]\(([^)#]+)", index, re.MULTILINE)
    assert len(questions) >= 30
    for page in PAGES:
        if page.parts[0] in {"concepts", "how-to"}:
            assert str(page) in questions


def test_readme_is_short() -> None:
    """A minute's reading: what it is, why, install, first lease, run, test, where to go."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for heading in ("Three lines of code", "Why not", "Install", "The first lease", "Where to go"):
        assert re.search(rf"^## {heading}", text, re.MULTILINE), heading


def test_tests_that_pages_name_are_there() -> None:
    """A file by its name or path; a test of the file that was named last."""
    files = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    named = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)?(?:::(test_\w+)(?:\[[^`]*\])?)?`")
    missing, seen = [], 0
    for page in PAGES:
        text = ""
        for match in named.finditer((DOCS / page).read_text()):
            if not any(match.groups()):
                continue
            if match[1]:
                text = "".join(code for path, code in files.items() if str(path).endswith(match[1]))
            seen += 1
            if not text or (match[2] and f"def {match[2]}(" not in text):
                missing += [f"{page}: {match[0]}"]
    assert missing == []
    assert seen > 100
