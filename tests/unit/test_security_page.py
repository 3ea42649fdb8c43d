"""SECURITY.md names a test for what it says: each is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

NAMED = re.compile(r"`(test_\w+\.py)?(?:::(test_\w+))?`")


def test_tests_that_the_page_names_are_there() -> None:
    """A file by its name; a test of the file that was named last."""
    page = (ROOT / "SECURITY.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named, file = 0, ""
    for match in NAMED.finditer(page):
        if not any(match.groups()):
            continue
        file = match[1] or file
        assert file in files, match[0]
        assert match[2] is None or f"def {match[2]}(" in files[file], match[0]
        named += 1
    assert named > 15
