"""Marks of calls: a reply repeats the mark of its call, so no call takes another's answer."""

from __future__ import annotations

import secrets
from itertools import count
from typing import Any, Final

MARKED_AT: Final = 4
"""Place of the argument of FCALL and EVALSHA with the protocol and the mark, `1 <mark>`."""

MARK_DIGITS: Final = 12
"""Length of a mark."""

_marks = count(1 << 4 * MARK_DIGITS - 1 | secrets.randbits(4 * MARK_DIGITS - 2))


class _Marked(str):
    """Protocol with a mark, `1 <mark>`, as our calls send it: no other text is taken for one."""

    __slots__ = ()


def new_mark() -> str:
    """Return a mark of 12 digits; no two calls share one."""
    return f"{next(_marks):x}"


def marked(protocol: int | str) -> str:
    """Return the protocol with a new mark that the reply repeats."""
    return _Marked(f"{protocol} {new_mark()}")


def mark_of(command: tuple[Any, ...]) -> str:
    """Return the mark that a command carries; empty: it carries none."""
    said = command[MARKED_AT] if len(command) > MARKED_AT else None
    return said.partition(" ")[2] if isinstance(said, _Marked) else ""


def take_mark(reply: Any, mark: str) -> bool:
    """Remove a call's mark from its reply; return False if it is the reply to another call."""
    if not mark:
        return True
    said = reply[0] if isinstance(reply, list) and reply else None
    tag, _, found = said.partition(" ") if isinstance(said, str) else ("", "", "")
    if found != mark:
        return False
    reply[0] = tag
    return True
