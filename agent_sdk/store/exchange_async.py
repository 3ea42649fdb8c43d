"""Connections of asyncio that count their answers; see `exchange`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's name for it
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from agent_sdk.protocol.marks import mark_of
from agent_sdk.store.exchange import (
    GARBLED,
    AnswerOfAnother,
    Counted,
    as_text,
    garbled,
    of_socket,
    own,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

READ_BYTES = 65536
"""Most bytes that are read at once."""


class AsyncCounting(Counted):
    """Connection of asyncio that is closed instead of used while it is owed an answer."""

    async def connect(self, *args: Any, **options: Any) -> None:
        """Make the connection ready for a command; see `Counting`."""
        if self.is_connected and not self.clean:
            await self.disconnect(nowait=True)
        await super().connect(*args, **options)  # type: ignore[misc] # redis-py's

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect and greet the server; see `Counting`."""
        if self.is_connected:
            return
        self._forget()
        try:
            await super().connect_check_health(*args, **options)  # type: ignore[misc] # redis-py's
            self._greeted = True
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection; see `Counting`."""
        self._greeted = False
        await super().disconnect(*args, **options)  # type: ignore[misc] # redis-py's
        self._forget()

    def hang_up(self) -> None:
        """Close the connection at once; in its own loop."""
        self._close()  # type: ignore[attr-defined] # redis-py's
        self._forget()

    async def send_command(self, *args: Any, **options: Any) -> None:
        """Send a command; see `Counting`."""
        packed = self.pack_command(*as_text(args))  # type: ignore[attr-defined] # redis-py's
        await self._send(packed, [mark_of(args)], check_health=options.get("check_health", True))

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send the packed commands; see `Counting`."""
        await self._send(command, self._take_packed(), check_health=check_health)

    async def _send(self, packed: Any, marks: list[str], *, check_health: bool) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[attr-defined] # redis-py's
        self._awaited += marks
        try:
            # redis-py's own way to send is wait_for, which before Python 3.12 swallows a
            # cancellation that comes when all is sent: the task then waits for the answer.
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(packed)  # type: ignore[attr-defined] # redis-py's
        except BaseException as error:
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeout("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise ConnectionError(f"Error while writing to socket: {error}") from error
            raise

    def expect(self, marks: Sequence[str]) -> None:
        """Take note of packed commands that are sent next: an answer is due for each."""
        self._packed += marks

    def at_hand(self, mark: str) -> Any:
        """Return the next reply, or the server's error, if it has been read; else NOT_ENOUGH_DATA.

        Only of a connection with hiredis, and for a command with a mark.
        """
        parser = self._parser
        try:
            reply = parser._reader.gets()  # noqa: SLF001 - hiredis's
        except GARBLED as error:
            raise garbled(error) from error
        if reply is NOT_ENOUGH_DATA:
            return reply
        if type(reply) is list:
            self._awaited.popleft()
            return own(reply, mark)
        if isinstance(reply, list):  # a push beside the replies, of which none was asked for
            return self.at_hand(mark)
        if isinstance(reply, ResponseError):
            self._awaited.popleft()
            self._refused(reply)
            return reply
        if isinstance(reply, Exception):
            raise reply
        return own(reply, mark)

    async def read_more(self) -> None:
        """Read what has come, or comes within the timeout for an answer."""
        parser = self._parser
        try:
            async with asyncio.timeout(self.socket_timeout):
                data = await parser._stream.read(READ_BYTES)  # noqa: SLF001 - hiredis's
        except OSError as error:
            raise of_socket(error) from error
        if not data:
            raise ConnectionError("Connection closed by server.")
        parser._reader.feed(data)  # noqa: SLF001 - hiredis's

    @property
    def has_hiredis(self) -> bool:
        """Return whether `at_hand` and `read_more` read it."""
        return hasattr(self._parser, "_reader")

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read the next answer; see `Counting`."""
        try:
            response = await super().read_response(*args, **options)  # type: ignore[misc] # redis-py's
        except ResponseError:
            self._answered()
            raise
        try:
            return own(response, self._answered())
        except AnswerOfAnother:
            await self.disconnect(nowait=True)
            raise
