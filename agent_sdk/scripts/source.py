"""The verbs as scripts: files of `lua/lib`, then the verb's own.

Each verb is one script, sent by its SHA and loaded once where the server does not know it yet.
Real servers get a `#!lua` line, so that a grant that would run out of memory is refused before it
starts instead of half done; what gives memory back carries `allow-oom`.

A script makes its functions anew at each call, so it makes those that it needs on its straight
path, and the rest when one of them is first asked for. See `functions` for the faster way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CORE = ("time", "clock", "deadlines")
"""The files of `lua/lib` that every verb begins with, in the order in which they are read."""

REST = (
    "events", "devices", "ledger", "placement", "tombstones", "lease_end", "data_loss", "unleased",
    "reaper", "queue", "reservations", "reservable", "offers", "scheduler", "findings", "names",
    "device_reports", "forgetting", "recovery",
)  # fmt: skip
"""The others, in theirs."""

AT_ONCE = {
    "acquire": {"events", "devices", "ledger", "placement", "tombstones"},
    "renew": {"ledger"},
    "poll": {"events", "devices", "ledger", "placement", "tombstones"},
    "release": {"events", "devices", "ledger", "tombstones", "lease_end"},
}
"""What a verb needs on its straight path; the rest is read when something of it is asked for."""

POLL = "poll"
"""`acquire` for a waiter, when the store is full: it begins nothing, and goes on."""

GOES_ON = frozenset(
    {"renew", "release", "reap", "report", "revoke", "drain", "set_policy", "forget", POLL}
)
"""Verbs that must go on when the store is full: they give back, keep what is there alive, or are an
operator's way out."""

VERBS = ("acquire", "renew", "release", "reap", "report", "revoke", "drain", "set_policy", "forget")
"""One file in `lua/` each."""

CALLED = (*VERBS, POLL)
"""All that a server may be asked for."""


@dataclass(frozen=True, slots=True)
class Script:
    """One verb's source text and the SHA-1 by which Redis knows it."""

    verb: str
    source: str
    sha: str


def lua_folder() -> Path:
    """Where the Lua files are: in the wheel beside this file, in a checkout beside the package."""
    packaged = Path(__file__).parents[1] / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "lua"


def read(names: Iterable[str], instead: Mapping[str, str] | None = None) -> list[str]:
    """Files of `lua/lib`; `instead`: file name -> source to use in its place."""
    folder, other = lua_folder() / "lib", instead or {}
    return [
        other.get(name) or (folder / f"{name}.lua").read_text(encoding="utf-8") for name in names
    ]


def read_verb(verb: str) -> str:
    """Read what runs of a verb after `start`: its own file, or, of `POLL`, that of `acquire`."""
    if verb == POLL:
        return f"ctx.polling = true\n{read_verb('acquire')}"
    return (lua_folder() / f"{verb}.lua").read_text(encoding="utf-8")


def assemble(
    verb: str, *, shebang: bool = True, instead: Mapping[str, str] | None = None
) -> Script:
    """Build one verb's script.

    Args:
        verb: one of `CALLED`.
        shebang: False leaves the `#!lua` line out, for servers that do not know it (fakeredis).
        instead: library file name -> source to use in its place; tests replace `time`.
    """
    now = AT_ONCE.get(verb, set())
    parts = [
        *read([*CORE, *(name for name in REST if name in now)], instead),
        "setmetatable(broker, { __index = function(_, name)", "setmetatable(broker, nil)",
        *read([name for name in REST if name not in now], instead),
        "return broker[name]", "end })",
        "start()",
        read_verb(verb),
    ]  # fmt: skip
    if shebang:
        parts.insert(0, "#!lua flags=allow-oom" if verb in GOES_ON else "#!lua")
    source = "\n".join(parts)
    return Script(verb, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def scripts() -> dict[str, Script]:
    """Return every verb's script, read from the files once per process."""
    return {verb: assemble(verb) for verb in CALLED}
