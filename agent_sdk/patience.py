"""What to do after a call to the store failed: how long to pause, or which error is now true.

Repeating is safe because the token is the idempotency key. It ends at the caller's deadline.
"""

from __future__ import annotations

import random
import time

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - redis-py's name for it
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's name for it
    TryAgainError,
)

from agent_sdk.errors import LeaseError, error_for

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5

_NOT_NOW = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
"""Answers of a server that did not execute the call and may do so soon."""

_LOST = (ConnectionError, TimeoutError)

_NOT_NOW_WORDS = ("BUSY ", "LOADING ", "NOREPLICAS ", "MISCONF ")


class Patience:
    """One call's tries, until its deadline.

    Args:
        deadline_s: seconds from now after which no further try is made.
    """

    __slots__ = ("_deadline", "_maybe_done", "_pause_s")

    def __init__(self, deadline_s: float) -> None:
        self._deadline = time.monotonic() + deadline_s
        self._pause_s = FIRST_PAUSE_S
        self._maybe_done = False

    def pause_after(self, error: RedisError, token: str | None = None) -> float:
        """Seconds to wait before the next try.

        Raises:
            LeaseError: no further try makes sense; it says what is true now.
        """
        if not self._may_pass(error):
            raise _final(error, token) from error
        pause = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        if time.monotonic() + pause >= self._deadline:
            code = "outcome_unknown" if self._maybe_done else "store_unavailable"
            says = "Redis answers, but not this" if _not_now(error) else _says(code)
            raise error_for(code, f"{says} ({error})", token=token) from error
        return pause

    def _may_pass(self, error: RedisError) -> bool:
        """Whether the next try may go better; remembers whether this one may have been executed."""
        if isinstance(error, (AuthenticationError, NoPermissionError)):
            return False
        if _not_now(error):
            return True
        if isinstance(error, _LOST):
            # redis-py says "connecting" of a connection that never stood: nothing was sent then.
            self._maybe_done |= "connecting" not in str(error)
            return True
        return False


def _not_now(error: RedisError) -> bool:
    return isinstance(error, _NOT_NOW) or str(error).startswith(_NOT_NOW_WORDS)


def _says(code: str) -> str:
    return str(error_for(code))


def _final(error: RedisError, token: str | None) -> LeaseError:
    if isinstance(error, (AuthenticationError, NoPermissionError)):
        return error_for("denied", f"{_says('denied')}: {error}", token=token)
    if isinstance(error, OutOfMemoryError):
        return error_for("store_full", token=token)
    kind = "protocol_mismatch" if isinstance(error, ResponseError) else "store_unavailable"
    return error_for(kind, f"{_says(kind)} ({error})", token=token)
