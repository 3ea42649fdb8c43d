"""Calls of many threads, of which those that come at once go together over few connections.

With a connection for each of a hundred threads, each call costs the server a read and a write, and
the client two waits in which the interpreter changes threads. Here the first calls go alone. Those
that come while as many are on their way wait, and the next of them to go takes the others along.

The main thread's calls always go alone: signals strike there, and an interrupt in the middle of an
exchange must strike no call of another thread.
"""

from __future__ import annotations

import threading
from collections import deque
from copy import copy
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's name for it
    RedisError,
)

from agent_sdk.clock import local_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    Send: TypeAlias = Callable[[bytes, Sequence[str], float], list[Any]]

MOST_APART: Final = 4
"""Calls, or crowds of calls, that are on their way at once."""

MOST_TOGETHER: Final = 64
"""Most calls that one takes along."""

CUT_OFF = "the thread that sent this call along with its own was stopped"


class _ThreadCall:
    """Call of one thread, and what became of it.

    Attributes:
        goes: it is its turn to go.
        done: another has taken it along, and its replies or its error are there.
    """

    __slots__ = ("done", "error", "goes", "marks", "packed", "replies", "woken")

    def __init__(self, packed: bytes, marks: Sequence[str], *, goes: bool) -> None:
        self.packed = packed
        self.marks = marks
        self.goes = goes
        self.done = False
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.woken = threading.Lock()
        self.woken.acquire()

    def its_turn(self) -> bool:
        """Wait until it is its turn to go, or until another has taken it along: then False."""
        self.woken.acquire()
        return self.goes

    def fail(self, error: BaseException) -> None:
        """Wake its thread with a copy of the error: one error has the traceback of one thread."""
        self.error = copy(error) if isinstance(error, RedisError) else ConnectionError(CUT_OFF)
        self.done = True
        self.woken.release()

    def answer(self, replies: list[Any], at: int) -> int:
        """Wake its thread with its part of the replies; return where that ends."""
        end = at + len(self.marks)
        self.replies = replies[at:end]
        self.done = True
        self.woken.release()
        return end

    def result(self) -> list[Any]:
        """Return its replies.

        Raises:
            RedisError: there are none.
        """
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # it keeps this frame
        return self.replies


class Together:
    """Queue of the calls of many threads. They work in single steps of a deque and a list."""

    def __init__(self) -> None:
        self._turns = [True] * MOST_APART
        self._waiting: deque[_ThreadCall] = deque()

    def ask(self, send: Send, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Return the replies to commands, sent alone or with those of other threads.

        Args:
            send: sends commands, and returns their replies.
            packed: the commands.
            marks: the mark of each command.
            now: the time, on `clock.local_now`'s clock.
        """
        mine = _ThreadCall(packed, marks, goes=self._take_turn())
        try:
            if not mine.goes:
                self._waiting.append(mine)
                if self._turns and self._take_turn():  # one has just come back
                    self._next_turn()
                if not mine.its_turn():
                    return mine.result()
                now = local_now()
            return self._go(send, mine, now)
        finally:
            if not (mine.goes or mine.done):
                self._withdraw(mine)
            if mine.goes:
                self._next_turn()

    def _withdraw(self, mine: _ThreadCall) -> None:
        """Leave the queue: this thread was stopped while it waited."""
        try:
            self._waiting.remove(mine)
        except ValueError:  # another has just taken it
            mine.woken.acquire()

    def _go(self, send: Send, mine: _ThreadCall, now: float) -> list[Any]:
        others = self._taken_along()
        if not others:
            return send(mine.packed, mine.marks, now)
        marks = [*mine.marks]
        for each in others:
            marks += each.marks
        try:
            replies = send(b"".join([mine.packed, *(each.packed for each in others)]), marks, now)
        except BaseException as error:
            for each in others:
                each.fail(error)
            raise
        at = len(mine.marks)
        for each in others:
            at = each.answer(replies, at)
        return replies[: len(mine.marks)]

    def _taken_along(self) -> list[_ThreadCall]:
        others: list[_ThreadCall] = []
        try:
            while len(others) < MOST_TOGETHER:
                others.append(self._waiting.popleft())
        except IndexError:
            pass
        return others

    def _take_turn(self) -> bool:
        try:
            return self._turns.pop()
        except IndexError:
            return False

    def _next_turn(self) -> None:
        """Give a turn to the first that waits; keep it for the next that comes if none does."""
        while True:
            try:
                first = self._waiting.popleft()
            except IndexError:
                self._turns.append(True)
                if self._waiting and self._take_turn():  # one has just come
                    continue
                return
            first.goes = True
            first.woken.release()
            return
