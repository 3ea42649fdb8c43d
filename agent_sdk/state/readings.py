"""Readings: answers of reading commands, each part by its form.

A store with other answers is no Redis that we know: the reading raises `ProtocolMismatch`, never
another error from a deeper place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import BrokerUnavailable, error_for
from agent_sdk.protocol.messages import SCHEMA, SCHEMA_WITH_MODELS, Answer, Read
from agent_sdk.protocol.refusals import schema_mismatch
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.tombstones import ended

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys
    from agent_sdk.state.tombstones import EndedLease


SCHEMAS: Final = re.compile("([0-9]{1,9})(?:-([0-9]{1,9}))?")
"""One schema, or the oldest and the newest schema that the scripts know."""


LONGEST: Final = 18
"""Most digits of a number that is read."""


def read_known(keys: Keys, *commands: tuple[Any, ...]) -> Generator[Read, Answer, Answer]:
    """Read from a pool whose layout this version knows.

    Raises:
        ProtocolMismatch: the pool has another schema.
    """
    answer = yield Read((("HGET", keys.pool, "schema"), *commands))
    check_schema(text_or_none(answer.raw[0]))
    return answer._replace(raw=answer.raw[1:])


def check_schema(schema: str | None) -> None:
    """Refuse a pool whose keys have another layout; None: there is no pool yet.

    Raises:
        ProtocolMismatch: this version does not know the schema.
    """
    if schema is None:
        return
    if schema == SCHEMA_WITH_MODELS:
        return
    known = SCHEMAS.fullmatch(schema)
    if not known or not int(known[1]) <= SCHEMA <= int(known[2] or known[1]):
        raise error_for("protocol_mismatch", schema_mismatch(schema))


@of_known_form
def names(answer: Answer) -> list[str]:
    """Return the names listed by a reading's only command, such as ZRANGE or SMEMBERS."""
    return _names(answer.raw[0])


@of_known_form
def names_each(answer: Answer) -> list[list[str]]:
    """Return the names listed by each command."""
    return [_names(part) for part in answer.raw]


@of_known_form
def rows(answer: Answer) -> list[dict[str, str]]:
    """Return the hash of each HGETALL; empty: there is none."""
    return [row(part) for part in answer.raw]


@of_known_form
def row(part: Any) -> dict[str, str]:
    """Return one hash."""
    if not isinstance(part, dict):
        raise TypeError(f"no hash: {str(part)[:80]}")
    for name, value in part.items():
        text(name)
        text(value)
    return part


@of_known_form
def numbers(answer: Answer) -> list[int | None]:
    """Return the number of each ZRANK or SCARD; None: there is none."""
    if wrong := [part for part in answer.raw if part is not None and type(part) is not int]:
        raise TypeError(f"no number: {str(wrong[0])[:80]}")
    return answer.raw


@of_known_form
def text(part: Any) -> str:
    """Return one string."""
    if not isinstance(part, str):
        raise TypeError(f"no text: {str(part)[:80]}")
    return part


def text_or_none(part: Any) -> str | None:
    """Return one string, or None: there is no such key or field."""
    return None if part is None else text(part)


@of_known_form
def whole_number(part: Any) -> int:
    """Return the whole number of one string; 0: there is no such key or field."""
    return int(text_or_none(part) or 0)


@of_known_form
def ended_in(answer: Answer, number: int, token: str) -> EndedLease | None:
    """Return the end of a token's lease by the shard of a GET; None: unknown."""
    return ended(text_or_none(answer.raw[number]), token)


def read_atomically(
    *commands: tuple[Any, ...],
) -> Generator[Read, Answer, list[Any]]:
    """Read in one transaction: the answer to each command, as the server gives it.

    The commands are of those that redis-py has no form of its own for, or reads texts of: it takes
    the word QUEUED for the answer. HGETALL, HMGET and LRANGE are.
    Instead of an answer there may be the server's error, where a key is of another type than it
    should be: `hash_in` and `list_in` then find nothing.

    A server at maxmemory refuses every command of a transaction: it is read one by one.
    """
    try:
        answer = yield Read((("MULTI",), *commands, ("EXEC",)))
    except BrokerUnavailable as error:
        if error.code != "store_full":
            raise
        return (yield Read(commands)).raw
    return _answers(answer, len(commands))


@of_known_form
def _answers(answer: Answer, count: int) -> list[Any]:
    found = answer.raw[-1]
    if not isinstance(found, list) or len(found) != count:
        raise TypeError(f"no transaction of {count} commands: {str(found)[:80]}")
    return found


def read_now(keys: Keys) -> Generator[Read, Answer, int]:
    """Read the time, ms on the pool's clock, which never goes back.

    Raises:
        ProtocolMismatch: the pool has another schema.
    """
    answer = yield from read_known(keys, ("TIME",), ("HMGET", keys.pool, "offset_ms", "last_ms"))
    return _now(*answer.raw)


@of_known_form
def _now(time: Any, clock: Any) -> int:
    offset_ms, last_ms = (int(x or 0) for x in clock)
    return max(int(time[0]) * 1000 + int(time[1]) // 1000 + offset_ms, last_ms)


def hash_in(part: Any) -> dict[str, str]:
    """Return the texts of a hash in a transaction's answer, whose form RESP2 and RESP3 differ in.

    What is no text is left out, and so is a key of another type.
    """
    if isinstance(part, dict):
        pairs: Any = part.items()
    else:
        of = part if isinstance(part, list) else []
        pairs = zip(of[::2], of[1::2], strict=False)
    return {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}


def list_in(part: Any) -> list[str | None]:
    """Return the texts of a list in a transaction's answer; None: no text at that place."""
    return [x if isinstance(x, str) else None for x in part] if isinstance(part, list) else []


def _names(part: Any) -> list[str]:
    if not isinstance(part, list | set):
        raise TypeError(f"no names: {str(part)[:80]}")
    return [text(name) for name in part]
