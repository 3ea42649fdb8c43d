"""Dispatch of a verb's call: as a function of the broker's library, or as a script.

Functions cost the server less, and a broker loads them. A server that has none, or denies them to
the user, is asked for the script, and after a while for the function again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeGuard

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from agent_sdk.protocol.marks import marked
from agent_sdk.scripts.library import own_library
from agent_sdk.scripts.packed import Frames, packed
from agent_sdk.scripts.source import CALLED, scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.protocol.messages import Call, Exchange
    from agent_sdk.scripts.packed import Packed

AGAIN_S, DENIED_S = 30.0, 600.0
"""Seconds after which missing or denied functions are asked for again."""

TRIES = 5
"""Most tries of one call.

A function that is not there, a script that is not there, each of them flushed once more at that
moment, the script.
"""

NOT_FOUND = "Function not found"

Command = tuple[Any, ...]


class Dispatch:
    """Dispatch of one process's calls to one server.

    Args:
        base: the pool's base key, `KEYS[1]` of each verb.

    Attributes:
        missing: True if the last call found no functions and they can be loaded.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._functions = {verb: own_library().function(verb) for verb in CALLED}
        self._frames = Frames(base)
        self._none_until = 0.0
        self.missing = False

    def loaded(self) -> None:
        """Note that the functions are there now."""
        self._none_until, self.missing = 0.0, False

    def command(self, call: Call) -> Command:
        """Return the call in the form for this server, with a mark that its reply repeats."""
        protocol, *args = call.args
        return (*self._form(call.verb), 1, self._base, marked(protocol), *args)

    def packed(self, call: Call) -> Packed:
        """Return the same as bytes."""
        if call.token is None:
            return packed(self.command(call))
        if self._none_until:
            return self._frames.pack(*self._form(call.verb), call)
        return self._frames.pack("FCALL", self._functions[call.verb], call)

    def _form(self, verb: str) -> tuple[str, str]:
        """Return the command for this server, and the name or digest of the verb there."""
        if self._none_until and time.monotonic() < self._none_until:
            return "EVALSHA", scripts()[verb].sha
        return "FCALL", self._functions[verb]

    def amend(self, call: Call, error: ResponseError) -> list[Command]:
        """Return the commands to send before another try of a call that was not understood.

        Raises:
            ResponseError: that was not the reason.
        """
        if isinstance(error, NoScriptError):
            return [("SCRIPT LOAD", scripts()[call.verb].source)]
        if not _has_no_functions(error):
            raise error
        self.missing = str(error).startswith(NOT_FOUND)
        self._none_until = time.monotonic() + (AGAIN_S if self.missing else DENIED_S)
        return []


def exchanged(
    exchange: Exchange, replies: Sequence[object], wording: Dispatch
) -> list[Command] | None:
    """Take note of the replies to an exchange.

    Return the commands to send before another try, since a call was not understood; None: both
    were. Another error of the release is no reason for one: its lease is given back later.
    """
    exchange.giving.take(replies[0])
    again = [
        (call, reply)
        for call, reply in zip(exchange.calls, replies, strict=True)
        if not_understood(reply)
    ]
    return (
        [command for call, reply in again for command in wording.amend(call, reply)]
        if again
        else None
    )


def reply_of(replies: list[Any]) -> list[Any]:
    """Take the last of the replies out of their list, and return it.

    Raises:
        ResponseError: it is the server's error.
    """
    reply: Any = replies.pop()
    if isinstance(reply, ResponseError):
        try:
            raise reply
        finally:
            del reply  # the error keeps this frame, and those of its callers
    return reply  # type: ignore[no-any-return] # every verb's reply is a list


def not_understood(answer: object) -> TypeGuard[ResponseError]:
    """Return whether a server lacks the function or script, or denies it."""
    return isinstance(answer, NoScriptError) or _has_no_functions(answer)


def _has_no_functions(answer: object) -> bool:
    if isinstance(answer, NoPermissionError):
        return "'fcall' command" in str(answer)
    text = str(answer) if isinstance(answer, ResponseError) else ""
    return text.startswith(NOT_FOUND) or "unknown command 'FCALL'" in text
