"""Verbs as scripts: files of `lua/lib`, then the verb's own.

Each verb is one script, sent by its SHA and loaded once where the server does not know it yet.
Real servers get a `#!lua` line, so that a grant that would run out of memory is refused before it
starts instead of half done; what gives memory back carries `allow-oom`.

A script makes its functions anew at each call. So it makes those of its straight path first, and
the rest when one of them is first called. See `library` for the faster way.
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
"""Files of `lua/lib` at the beginning of every verb, in the order of reading."""

REST = (
    "events", "devices", "ledger", "teams", "model_sums", "quotas", "caps", "placement",
    "tombstones", "lease_end", "lease_use", "usage_sums", "usage", "data_loss", "unleased",
    "reaper", "queue", "reservations", "reservable", "offers", "victims", "preemption",
    "scheduler", "findings", "names", "device_index", "device_reports", "forgetting",
    "recovery", "in_use",
)  # fmt: skip
"""Other files of `lua/lib`, in the order of reading."""

KEEPING = ("kept", "straight")
"""Files of `lua/lib` that only libraries have, after all others: what is kept between calls."""

STRAIGHT = ("acquire", "renew", "release")
"""Verbs that have a straight path for the common case, in a library."""

AT_ONCE = {
    "acquire": {"events", "devices", "ledger", "teams", "caps", "placement", "tombstones"},
    "renew": {"ledger"},
    "renew_many": {"ledger"},
    "poll": {"events", "devices", "ledger", "teams", "caps", "placement", "tombstones"},
    "release": {"events", "devices", "ledger", "tombstones", "lease_end"},
}
"""Files that a verb needs on its straight path; the others are read on the first call into them."""

POLL = "poll"
"""Form of `acquire` for a waiter when the store is full: it begins nothing, and goes on."""

GOES_ON = frozenset(
    {"renew", "renew_many", "release", "reap", "report", "revoke", "drain", "set_policy",
     "forget", "release_driver", "set_teams", "extend", POLL}
)  # fmt: skip
"""Verbs that must go on when the store is full.

They give memory back, keep leases alive, or are an operator's way out.
"""

VERBS = (
    "acquire", "renew", "renew_many", "release", "reap", "report", "revoke", "drain",
    "set_policy", "set_teams", "ask", "extend", "forget", "release_driver",
)  # fmt: skip
"""Verbs, each with a file in `lua/`."""

CALLED = (*VERBS, POLL)
"""Scripts that a server may be asked for."""


@dataclass(frozen=True, slots=True)
class Script:
    """Source text of one verb, and the SHA-1 by which Redis knows it."""

    verb: str
    source: str
    sha: str


def lua_folder() -> Path:
    """Return the folder of the Lua files.

    In the wheel it is beside this file, in a checkout beside the package.
    """
    packaged = Path(__file__).parents[1] / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "lua"


def read(names: Iterable[str], instead: Mapping[str, str] | None = None) -> list[str]:
    """Return files of `lua/lib`; `instead`: file name -> source to use in its place."""
    folder, other = lua_folder() / "lib", instead or {}
    return [
        other.get(name) or (folder / f"{name}.lua").read_text(encoding="utf-8") for name in names
    ]


def read_rest(names: Iterable[str], instead: Mapping[str, str] | None = None) -> list[str]:
    """Return files of `REST`, each in a block of its own: Lua has 200 local variables in one."""
    return [f"do\n{text}\nend" for text in read(names, instead)]


def read_verb(verb: str) -> str:
    """Return a verb's part after `start`: its own file, or, for `POLL`, that of `acquire`."""
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
        *read(CORE, instead),
        *read_rest([name for name in REST if name in now], instead),
        "setmetatable(broker, { __index = function(_, name)", "setmetatable(broker, nil)",
        *read_rest([name for name in REST if name not in now], instead),
        "return broker[name]", "end })",
        "start()",
        "return guarded(function()", read_verb(verb), "end)",
    ]  # fmt: skip
    if shebang:
        parts.insert(0, "#!lua flags=allow-oom" if verb in GOES_ON else "#!lua")
    source = "\n".join(parts)
    return Script(verb, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def scripts() -> dict[str, Script]:
    """Return every verb's script, read from the files once per process."""
    return {verb: assemble(verb) for verb in CALLED}
