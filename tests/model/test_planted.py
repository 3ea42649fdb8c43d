"""Seeded bugs are of the verbs as they are: a text that is there no more makes no bug."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from agent_sdk.scripts import library, source
from tests.model.bugs import BUGS

if TYPE_CHECKING:
    from tests.model.planted import Bug


@cache
def code() -> str:
    """All verbs, as scripts and as a library."""
    verbs = [script.source for script in source.scripts().values()]
    return "\n".join([*verbs, library.assemble(own=True).source])


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_texts_of_a_seeded_bug_are_there(bug: Bug) -> None:
    """At once, not only where the bug is looked for, which takes long."""
    for old, _ in bug.changes:
        anyhow = r"\s+".join(map(re.escape, old.split()))  # wherever its lines are broken
        assert re.search(anyhow, code()), f"the verbs have no such text: {old}"
