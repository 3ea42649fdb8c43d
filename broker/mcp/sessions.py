"""Sessions of older protocols over HTTP, bounded for each key: the longest unused one goes first.

Most clients never end a session, and one key's must not take the room of all.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Message, Receive, Scope, Send

    Handle = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER: Final = b"mcp-session-id"

OK, GONE = 200, 404

MOST: Final = 100
"""Most sessions of one key; without keys, of all."""


class Sessions:
    """Sessions of each key, in the order of their last use.

    Args:
        handle: the SDK's handler of requests.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._of: dict[str, OrderedDict[str, None]] = {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; end a session of its key that the new one takes the place of."""
        mine = self._of.setdefault(scope["principal"].name, OrderedDict())
        named = _header(scope)

        going_on = False

        async def seen(message: Message) -> None:
            nonlocal going_on
            if message["type"] == "http.response.start":
                message["status"] = int(message["status"])  # an enum, which logs print by name
                _note(mine, scope, named, message)
            going_on = message["type"] != "http.response.body" or message.get("more_body", False)
            await send(message)

        await self._handle(scope, receive, seen)
        if going_on:  # a stream that its session's end has cut off
            await send({"type": "http.response.body", "body": b""})
        while len(mine) > MOST:
            ended, _ = mine.popitem(last=False)
            await self._handle(_deletion(scope, ended), _nothing, _unheard)


def _note(mine: OrderedDict[str, None], scope: Scope, named: str | None, answer: Message) -> None:
    """Note what an answer says of the session that a request named, or of a new one."""
    status = answer["status"]
    if named is None:
        if status == OK and (made := _header(answer)):
            mine[made] = None
    elif named in mine:
        mine.move_to_end(named)
        if status == GONE or (scope["method"] == "DELETE" and status == OK):
            del mine[named]


def _header(of: Mapping[str, Any]) -> str | None:
    found = (value for name, value in of.get("headers", ()) if name.lower() == HEADER)
    value: bytes | None = next(found, None)
    return None if value is None else value.decode("latin-1")


def _deletion(scope: Scope, session: str) -> Scope:
    """Return the request that ends a session, by the principal of another request."""
    headers = [(HEADER, session.encode("latin-1")), (b"host", b"localhost")]
    return {**scope, "method": "DELETE", "query_string": b"", "headers": headers}


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _unheard(message: Message) -> None:
    """Take the answer to a request of our own."""
