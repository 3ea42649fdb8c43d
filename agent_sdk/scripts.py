"""The verbs as Redis runs them: `lua/lib/*.lua` in reading order, then the verb's own file.

Each verb is one script, sent by its SHA and loaded once where the server does not know it yet.
Real servers get a `#!lua` line, so that a grant that would run out of memory is refused before it
starts instead of half done; what gives memory back carries `allow-oom`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LIBRARY = (
    "time",
    "clock",
    "events",
    "placement",
    "ledger",
    "waiters",
    "line",
    "agenda",
    "findings",
)
"""The files of `lua/lib` in the order they are read before each verb."""

ONLY = {"findings": {"report"}}
"""Files that these verbs alone read."""

GOES_ON = frozenset({"renew", "release", "reap", "revoke", "drain", "set_policy"})
"""Verbs that must go on when the store is full: they give back, or are an operator's way out."""

VERBS = ("acquire", "renew", "release", "reap", "report", "revoke", "drain", "set_policy")
"""One file in `lua/` each."""


@dataclass(frozen=True, slots=True)
class Script:
    """One verb's source text and the SHA-1 by which Redis knows it."""

    verb: str
    source: str
    sha: str


def lua_folder() -> Path:
    """Where the Lua files are: in the wheel beside this file, in a checkout beside the package."""
    packaged = Path(__file__).parent / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "lua"


def assemble(
    verb: str, *, shebang: bool = True, instead: Mapping[str, str] | None = None
) -> Script:
    """Build one verb's script.

    Args:
        verb: one of `VERBS`.
        shebang: False leaves the `#!lua` line out, for servers that do not know it (fakeredis).
        instead: library file name -> source to use in its place; tests replace `time`.
    """
    folder, instead = lua_folder(), instead or {}
    names = [name for name in LIBRARY if verb in ONLY.get(name, VERBS)]
    parts = [instead.get(n) or (folder / "lib" / f"{n}.lua").read_text() for n in names]
    parts.append((folder / f"{verb}.lua").read_text())
    if shebang:
        parts.insert(0, "#!lua flags=allow-oom" if verb in GOES_ON else "#!lua")
    source = "\n".join(parts)
    return Script(verb, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def scripts() -> dict[str, Script]:
    """Every verb's script, read from the files once per process."""
    return {verb: assemble(verb) for verb in VERBS}
