"""Calls of many threads, of which those that come at once go together over few connections.

With a connection for each of a hundred threads, each call costs the server a read and a write, and
the client two waits in which the interpreter changes threads. Here the first calls go alone. Those
that come while as many are on their way wait, and the next of them to go takes the others along.

The main thread's calls always go alone: signals strike there, and an interrupt in the middle of an
exchange must strike no call of another thread.

Any other thread may be stopped, too, by an exception that is thrown into it, between any two steps:
with its turn, or with a call that it has just taken. So none waits for others without end.
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

STUCK_S: Final = 5.0
"""Most seconds that a call waits for others: then they were stopped, or the store hangs."""

CUT_OFF = "the thread that sent this call along with its own was stopped"


class _StuckError(Exception):
    """Error of a call that has waited for long enough, and was not sent."""


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
        """Wait until it is its turn to go, or until another has taken it along: then False.

        False as well, and it is not done, if neither came in time.
        """
        self.woken.acquire(timeout=STUCK_S)
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
        if not self.done:
            self.done = True  # no more is waited for
            raise ConnectionError(CUT_OFF)
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # it keeps this frame
        return self.replies


class Together:
    """Calls of many threads; where they are stuck, a new crowd takes the place of the old one."""

    def __init__(self) -> None:
        self._crowd = _Crowd()

    def ask(self, send: Send, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Return the replies to commands, sent alone or with those of other threads.

        Args:
            send: sends commands, and returns their replies.
            packed: the commands.
            marks: the mark of each command.
            now: the time, on `clock.local_now`'s clock.
        """
        while True:
            crowd = self._crowd
            try:
                return crowd.ask(send, packed, marks, now)
            except _StuckError:
                if self._crowd is crowd:
                    self._crowd = _Crowd()
                now = local_now()


class _Crowd:
    """Queue of the calls of many threads. They work in single steps of a deque and a list."""

    def __init__(self) -> None:
        self._turns = [True] * MOST_APART
        self._waiting: deque[_ThreadCall] = deque()

    def ask(self, send: Send, packed: bytes, marks: Sequence[str], now: float) -> list[Any]:
        """Return the replies to commands; see `Together.ask`.

        Raises:
            _StuckError: its turn did not come; nothing was sent.
        """
        mine = _ThreadCall(packed, marks, goes=self._take_turn())
        try:
            if not mine.goes:
                self._waiting.append(mine)
                if self._turns and self._take_turn():  # one has just come back
                    self._next_turn()
                if not mine.its_turn():
                    if not mine.done and self._withdraw(mine):
                        mine.done = True
                        raise _StuckError
                    return mine.result()
                now = local_now()
            return self._go(send, mine, now)
        finally:
            if not (mine.goes or mine.done):
                self._withdraw(mine)
            if mine.goes:
                self._next_turn()

    def _withdraw(self, mine: _ThreadCall) -> bool:
        """Leave the queue; return False if another has taken the call, and is given time for it."""
        try:
            self._waiting.remove(mine)
        except ValueError:
            mine.woken.acquire(timeout=STUCK_S)
            return False
        return True

    def _go(self, send: Send, mine: _ThreadCall, now: float) -> list[Any]:
        others: list[_ThreadCall] = []
        try:
            self._take_along(others)
            if not others:
                return send(mine.packed, mine.marks, now)
            marks = [*mine.marks]
            for each in others:
                marks += each.marks
            replies = send(b"".join([mine.packed, *(each.packed for each in others)]), marks, now)
            at = len(mine.marks)
            for each in others:
                at = each.answer(replies, at)
            return replies[: len(mine.marks)]
        except BaseException as error:
            for each in others:
                if not each.done:
                    each.fail(error)
            raise

    def _take_along(self, others: list[_ThreadCall]) -> None:
        """Take calls that wait out of the queue, into a list."""
        try:
            while len(others) < MOST_TOGETHER:
                others.append(self._waiting.popleft())
        except IndexError:
            pass

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
