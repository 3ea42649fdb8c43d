"""Verbs as Redis function libraries: for the SDK, and for redis-cli without Python.

Libraries and scripts are made of the same files. A library's functions are made once, where a
script makes its own at every call, which costs the server a sixth more for a lease. KEYS, ARGV,
replies and effects are the same, and both may be used on one pool.

The SDK calls the functions of its own version by names that carry it, so that versions beside each
other keep to their own code; redis-cli has the short names, of what was loaded last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from agent_sdk.scripts.source import (
    CALLED,
    CORE,
    GOES_ON,
    KEEPING,
    REST,
    STRAIGHT,
    read,
    read_rest,
    read_verb,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

LIBRARY = "gpu_broker"

PREFIX = "gpu_"
"""Beginning of a function's name, before the verb's."""

VERSION = f"{PREFIX}version"
"""Function that returns the version of the short-named library."""

SHOWN = 12
"""Digits of a version that are in names."""

MARK = "%SUFFIX%"
"""Mark in the place of names' versions: a version is the digest of the rest of a library."""

OURS = re.compile(rf"{LIBRARY}(_[0-9a-f]{{{SHOWN}}})?")


@dataclass(frozen=True, slots=True)
class Library:
    """Source of a library for FUNCTION LOAD, and its name."""

    name: str
    suffix: str
    version: str
    source: str

    def function(self, verb: str) -> str:
        """Return the name of a verb's function."""
        return f"{PREFIX}{verb}{self.suffix}"


def assemble(*, own: bool, instead: Mapping[str, str] | None = None) -> Library:
    """Build a library.

    Args:
        own: name it and its functions by their version.
        instead: library file name -> source to use in its place, as in `scripts.assemble`.
    """
    lines = [
        f"#!lua name={LIBRARY}{MARK}", "local KEYS, ARGV",
        *read(CORE, instead), *read_rest(REST, instead), *read(KEEPING, instead),
        f"seen, served = {{}}, 'served{MARK}'",
    ]  # fmt: skip
    for verb in CALLED:
        flags = "'allow-oom'" if verb in GOES_ON else ""
        straight = f"straight_{verb}() or " if verb in STRAIGHT else ""
        lines += [
            "do", "local function plain()", "start()", read_verb(verb), "end",
            f"local function whole() return {straight}plain() end",
            f"redis.register_function{{function_name='{PREFIX}{verb}{MARK}', flags={{{flags}}},",
            "callback=function(keys, args)", "KEYS, ARGV = keys, args",
            "return guarded(whole)", "end}", "end",
        ]  # fmt: skip
    text = "\n".join(lines).splitlines()
    text = [line for line in text if not line.lstrip().startswith("--")]
    version = sha1("\n".join(text).encode(), usedforsecurity=False).hexdigest()
    suffix = f"_{version[:SHOWN]}" if own else ""
    text += [
        f"redis.register_function{{function_name='{VERSION}{MARK}', flags={{'no-writes'}},",
        f"callback=function() return '{version}' end}}", "",
    ]  # fmt: skip
    return Library(LIBRARY + suffix, suffix, version, "\n".join(text).replace(MARK, suffix))


@cache
def library() -> Library:
    """Return the library with short names."""
    return assemble(own=False)


@cache
def own_library() -> Library:
    """Return the library that the SDK of this version calls."""
    return assemble(own=True)


def load(redis: Redis) -> str:
    """Load both libraries onto a server, replacing the short-named one; return their version."""
    redis.function_load(library().source, replace=True)
    load_own(redis)
    return library().version


def load_own(redis: Redis) -> None:
    """Load the SDK's library onto a server, unless one of that name is there."""
    try:
        redis.function_load(own_library().source)
    except ResponseError as error:
        if not is_there(error):
            raise


def is_there(error: Exception) -> bool:
    """Return whether loading failed because the library was there."""
    return "already exists" in str(error)


def loaded(redis: Redis) -> tuple[list[str], str | None]:
    """Return the short names of a server's functions, and their version; empty: none are there."""
    names = libraries(redis).get(LIBRARY, [])
    there: Any = redis.fcall_ro(VERSION, 0) if VERSION in names else None
    return names, there


def libraries(redis: Redis) -> dict[str, list[str]]:
    """Return our libraries of all versions on a server, each with the names of its functions."""
    found: Any = redis.function_list(library=f"{LIBRARY}*")
    rows = {row["library_name"]: row["functions"] for row in map(_fields, found)}
    return {
        name: sorted(_fields(function)["name"] for function in rows[name])
        for name in sorted(rows)
        if OURS.fullmatch(name)
    }


def delete(redis: Redis) -> list[str]:
    """Delete the libraries of all versions from a server; return their names."""
    names = list(libraries(redis))
    for name in names:
        try:
            redis.function_delete(name)
        except ResponseError as error:
            if "not found" not in str(error):  # another client has deleted it
                raise
    return names


def _fields(answer: Any) -> dict[str, Any]:
    """Return a map as RESP3 gives it, or the flat list of RESP2."""
    if isinstance(answer, dict):
        return answer
    return dict(zip(answer[::2], answer[1::2], strict=True))
