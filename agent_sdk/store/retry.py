"""Retries of calls to the store: the pause before the next try, or the final error.

Repeating is safe because the token is the idempotency key. It ends at the caller's deadline.
"""

from __future__ import annotations

import random
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - redis-py's name for it
    DataError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's name for it
)

from agent_sdk.errors import LeaseError, error_for
from agent_sdk.protocol.messages import Call, Exchange
from agent_sdk.scripts.source import POLL
from agent_sdk.store.connect_errors import hopeless, never_sent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.protocol.messages import Read

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5

_MOVING = "the pool is on its way to another node of the Cluster"

_NOT_NOW = {
    "ASK": _MOVING,
    "BUSY": "a script keeps it busy",
    "CLUSTERDOWN": "the Cluster has no majority, or no primary for a part of it",
    "LOADING": "it is reading its data from disk",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "MISCONF": "it cannot write to its disk, so it takes no writes",
    "MOVED": "another node of the Cluster has the pool (redis+cluster://, not redis://, finds it)",
    "NOSCRIPT": "its scripts are flushed as fast as they are loaded",
    "NOREPLICAS": "too few of its replicas keep up, so it takes no writes",
    "READONLY": "it is a replica, and takes no writes",
    "TRYAGAIN": _MOVING,
}
"""Answers of a server that did not execute the call and may soon, with the code for each."""

_UNSUITED = {
    "unknown command": "the server lacks a command that leases need: it must be a whole Redis 7, "
    "Valkey 7.2 or newer",
    "scripting engine": "the server has no Lua engine, in which the verbs run: load its module, or "
    "name another server in REDIS_URL",
    "DB index": "the server has no database of the number that the store's URL names",
    "SELECT is not allowed": "this Cluster has database 0 alone: name none in the store's URL",
}
"""Words of a server that will never do, with the sentence for each."""

_LOST = (ConnectionError, InvalidResponse, TimeoutError)
"""Failures without a readable answer: the call may have been executed all the same."""

_DENIED_WORDS = re.compile(r"ACL failure in script|user executing the script can't")
"""Words of a denial inside a script."""

_WORD = re.compile(r"(?:^|caused error: )([A-Z]+) ")
"""First word of answers without a class of their own; a pipeline puts other words before it."""


class RetryPolicy:
    """Retries of one call, until its deadline.

    Args:
        deadline_s: seconds from now after which no further try is made.
        reached: the store has answered before: its address is right.
    """

    __slots__ = ("_deadline", "_maybe_done", "_pause_s", "_reached")

    def __init__(self, deadline_s: float, *, reached: bool = False) -> None:
        self._deadline = time.monotonic() + deadline_s
        self._reached = reached
        self._pause_s = FIRST_PAUSE_S
        self._maybe_done = False

    def pause_after(self, error: RedisError, token: str | None = None) -> float:
        """Return the seconds to wait before the next try.

        Raises:
            LeaseError: no further try makes sense; the code has the reason.
        """
        if not self._may_pass(error):
            raise self._final(error, token) from error
        pause = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        if time.monotonic() + pause >= self._deadline:
            code = "outcome_unknown" if self._maybe_done else "store_unavailable"
            why = _not_now(error)
            says = f"Redis answers, but not this: {why}" if why else _says(code)
            raise error_for(code, f"{says} ({error})", token=token) from error
        return pause

    def _may_pass(self, error: RedisError) -> bool:
        """Return whether the next try may succeed; note whether this one may have been executed."""
        if _denied(error):
            return False
        if _not_now(error):
            return True
        if isinstance(error, _LOST):
            self._maybe_done |= not never_sent(error)
            return self._reached or not hopeless(error)
        return False

    def _final(self, error: RedisError, token: str | None) -> LeaseError:
        """Return the final error; an earlier try may have been executed."""
        if self._maybe_done:
            code = "outcome_unknown"
        elif _denied(error):
            code = "denied"
        elif isinstance(error, OutOfMemoryError):
            code = "store_full"
        elif isinstance(error, ResponseError):
            return error_for("protocol_mismatch", _unsuited(error), token=token)
        elif isinstance(error, DataError):
            code = "bad_request"
        else:
            code = "store_unavailable"
        why = hopeless(error)
        says = f"{_says(code)}: {why}" if why else _says(code)
        return error_for(code, f"{says} ({error})", token=token)


def poll_of(ask: Call | Exchange | Read, error: RedisError) -> Call | None:
    """Return the call that a full store takes instead: a waiter keeps its place in the queue.

    None: the failure is another, or no such call exists.
    """
    call = ask.call if isinstance(ask, Exchange) else ask
    if isinstance(error, OutOfMemoryError) and isinstance(call, Call) and call.verb == "acquire":
        return call._replace(verb=POLL)
    return None


@contextmanager
def in_words() -> Iterator[None]:
    """Turn redis-py's errors into the SDK's.

    Raises:
        LeaseError: the store denies a command, or cannot serve now.
    """
    try:
        yield
    except RedisError as error:
        RetryPolicy(0).pause_after(error)  # raises: no time is left for another try
        raise


def _denied(error: RedisError) -> bool:
    kinds = (AuthenticationError, NoPermissionError)
    return isinstance(error, kinds) or bool(_DENIED_WORDS.search(str(error)))


def _not_now(error: RedisError) -> str | None:
    """Return the code for a server that did not execute the call, and may soon."""
    said = _WORD.search(str(error))
    word = error.status_code or (said[1] if said else "")
    if isinstance(error, NoScriptError):  # redis-py leaves the word out
        word = "NOSCRIPT"
    return _NOT_NOW.get(word)


def _unsuited(error: ResponseError) -> str:
    """Return a sentence about a server's error that no script of this version raises."""
    for said, why in _UNSUITED.items():
        if said in str(error):
            return f"{why} ({error})"
    return f"{_says('protocol_mismatch')} ({error})"


def _says(code: str) -> str:
    return str(error_for(code))
