"""PendingLeases of agents: a task of the server keeps each place while its agent thinks.

A turn of a model takes longer than the 10 s within which a waiter must poll.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from agent_sdk import AsyncLease


@dataclass(slots=True, eq=False)
class PendingLease:
    """Lease that an agent waits for, and whose place this process keeps.

    Attributes:
        owner: the name of the principal that asked; empty: there are no keys.
        hold_s: seconds for which the lease is wanted; None: not said.
        named_at: time of the last call that named it, or the end of one that waits, on the loop's
            clock.
        told: a result has told its ticket.
    """

    token: str
    agent: str
    owner: str
    memory_mb: int
    hold_s: float | None
    task: asyncio.Task[AsyncLease]
    named_at: float
    told: bool = False
    watch: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def lease(self) -> AsyncLease | None:
        """Lease that was granted and that no call has fetched; None: none was."""
        done = self.task.done() and not self.task.cancelled() and not self.task.exception()
        return self.task.result() if done else None


class PendingLeases:
    """PendingLeases that this process keeps.

    Args:
        idle_s: seconds without a call that names it, after which a wait is given up.
        forget: called with each wait that is given up.

    Attributes:
        stopped: waits until calls are to be answered at once: this process is told to stop.
    """

    def __init__(self, idle_s: float, forget: Callable[[PendingLease], None]) -> None:
        self._idle_s = idle_s
        self._forget = forget
        self._waits: dict[str, PendingLease] = {}
        self.stopped: Callable[[], Coroutine[Any, Any, object]] = asyncio.Event().wait

    def get(self, token: str) -> PendingLease | None:
        """Return a wait by its ticket."""
        return self._waits.get(token)

    def of(self, owner: str) -> list[PendingLease]:
        """Return an owner's waits, oldest first."""
        return [wait for wait in self._waits.values() if wait.owner == owner]

    def begin(
        self,
        token: str,
        asked: Coroutine[Any, Any, AsyncLease],
        *,
        agent: str,
        owner: str,
        memory_mb: int,
        hold_s: float | None,
    ) -> PendingLease:
        """Begin a wait; `asked` gets its lease."""
        task, now = asyncio.ensure_future(asked), asyncio.get_running_loop().time()
        wait = PendingLease(token, agent, owner, memory_mb, hold_s, task, now)
        self._waits[token] = wait
        wait.watch = asyncio.ensure_future(self._watched(wait))
        return wait

    async def result(self, wait: PendingLease, seconds: float) -> AsyncLease | None:
        """Return the lease, or None if it is not granted within so many seconds.

        A call that is cancelled before its agent knows of the ticket gives the wait up.

        Raises:
            LeaseError: the wait ended without a lease, or another call has ended it.
        """
        loop = asyncio.get_running_loop()
        wait.named_at = loop.time() + seconds  # its agent is not silent before
        stops = asyncio.ensure_future(self.stopped())
        first: set[asyncio.Future[Any]] = {wait.task, stops}
        try:
            await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not wait.told:
                self.drop(wait)
                self._forget(wait)
            raise
        finally:
            wait.named_at = loop.time()
            stops.cancel()
        if wait.task.cancelled():
            raise error_for("cancelled", token=wait.token)
        if not wait.task.done():
            wait.told = True
            return None
        self.drop(wait)
        return wait.task.result()

    def drop(self, wait: PendingLease) -> None:
        """Stop keeping a place, and leave what the store has of it."""
        self._waits.pop(wait.token, None)
        for task in (wait.task, wait.watch):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if wait.task.done() and not wait.task.cancelled():
            wait.task.exception()  # an agent that does not ask again leaves it unread

    def end(self) -> list[str]:
        """Stop keeping all places; return their tokens."""
        tokens = list(self._waits)
        for wait in list(self._waits.values()):
            self.drop(wait)
        return tokens

    async def _watched(self, wait: PendingLease) -> None:
        """Give a wait up, or a lease that was not fetched, once its agent has been silent."""
        loop = asyncio.get_running_loop()
        left_s = self._idle_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = wait.named_at + self._idle_s - loop.time()
        self.drop(wait)
        self._forget(wait)
