"""The verbs as a Redis function library, for who has redis-cli and no Python at hand.

Made of the very scripts that the SDK sends: each verb is a function whose body is that script, so
that KEYS, ARGV, replies and effects are the same, and both may be used on one pool.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from agent_sdk.scripts import GOES_ON, VERBS, assemble

if TYPE_CHECKING:
    from redis import Redis

LIBRARY = "gpu_broker"

PREFIX = "gpu_"
"""Of a function's name, before the verb's."""

VERSION = f"{PREFIX}version"
"""A function that answers which version of the library this is."""


@cache
def source() -> str:
    """The library's source, for FUNCTION LOAD."""
    functions = "\n".join(_function(verb) for verb in VERBS)
    version = sha1(functions.encode(), usedforsecurity=False).hexdigest()
    return (
        f"#!lua name={LIBRARY}\n{functions}\n"
        f"redis.register_function{{function_name='{VERSION}', flags={{'no-writes'}},\n"
        f"  callback=function() return '{version}' end}}\n"
    )


def version() -> str:
    """What the function `gpu_version` of this version answers."""
    return source().rpartition("return '")[2].partition("'")[0]


def load(redis: Redis) -> str:
    """Put the library on a server, in place of what is there; its version."""
    redis.function_load(source(), replace=True)
    return version()


def loaded(redis: Redis) -> tuple[list[str], str | None]:
    """The names of the functions that a server has, and their version; none: not there."""
    libraries: Any = redis.function_list(library=LIBRARY)
    if not libraries:
        return [], None
    found = _fields(libraries[0])
    names = sorted(_fields(each)["name"] for each in found["functions"])
    there: Any = redis.fcall_ro(VERSION, 0) if VERSION in names else None
    return names, there


def delete(redis: Redis) -> bool:
    """Take the library off a server; False when it was not there."""
    if not loaded(redis)[0]:
        return False
    redis.function_delete(LIBRARY)
    return True


def _function(verb: str) -> str:
    """One verb, registered: its script as the body of a function of KEYS and ARGV."""
    lines = assemble(verb, shebang=False).source.splitlines()
    body = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    flags = "'allow-oom'" if verb in GOES_ON else ""
    return (
        f"redis.register_function{{function_name='{PREFIX}{verb}', flags={{{flags}}},\n"
        f"callback=function(KEYS, ARGV)\n{body}\nend}}"
    )


def _fields(answer: Any) -> dict[str, Any]:
    """A map as RESP3 gives it, or the flat list of RESP2."""
    if isinstance(answer, dict):
        return answer
    return dict(zip(answer[::2], answer[1::2], strict=True))
