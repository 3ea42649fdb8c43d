"""What commands that only read answer, each part by its form.

A store that answers otherwise is no Redis that we know: `ProtocolMismatch`, and never another error
from the depths of who made something of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_sdk.protocol.lease import of_known_form
from agent_sdk.state.tombstones import ended

if TYPE_CHECKING:
    from agent_sdk.protocol.lease import Answer
    from agent_sdk.state.tombstones import EndedLease


@of_known_form
def names(answer: Answer) -> list[str]:
    """The names that the one command of a reading listed, as ZRANGE and SMEMBERS do."""
    return _names(answer.raw[0])


@of_known_form
def names_each(answer: Answer) -> list[list[str]]:
    """The names that each command listed."""
    return [_names(part) for part in answer.raw]


@of_known_form
def rows(answer: Answer) -> list[dict[str, str]]:
    """The hash that each HGETALL found; empty: there is none."""
    return [row(part) for part in answer.raw]


@of_known_form
def row(part: Any) -> dict[str, str]:
    """One hash."""
    if not isinstance(part, dict):
        raise TypeError(f"no hash: {str(part)[:80]}")
    for name, value in part.items():
        text(name)
        text(value)
    return part


@of_known_form
def numbers(answer: Answer) -> list[int | None]:
    """The number that each ZRANK or SCARD found; None: there is none."""
    if wrong := [part for part in answer.raw if part is not None and type(part) is not int]:
        raise TypeError(f"no number: {str(wrong[0])[:80]}")
    return answer.raw


@of_known_form
def text(part: Any) -> str:
    """One string."""
    if not isinstance(part, str):
        raise TypeError(f"no text: {str(part)[:80]}")
    return part


def text_or_none(part: Any) -> str | None:
    """One string, or None: there is no such key or field."""
    return None if part is None else text(part)


@of_known_form
def ended_in(answer: Answer, number: int, token: str) -> EndedLease | None:
    """Give how the lease of a token ended, by the shard that a GET found; None: unknown."""
    return ended(text_or_none(answer.raw[number]), token)


def _names(part: Any) -> list[str]:
    if not isinstance(part, list | set):
        raise TypeError(f"no names: {str(part)[:80]}")
    return [text(name) for name in part]
