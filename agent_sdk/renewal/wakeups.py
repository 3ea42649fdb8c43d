"""Hints for waiters: one list in Redis and one blocking connection for a whole process.

The script that makes room also gives it away, and leaves the waiter's token in the inbox of the
waiter's process. A hint only means "ask now": the ledger has the truth. A lost hint (a killed
connection, a failover) costs its waiter the time to its next poll and nothing else. When the
connection breaks, all waiters ask at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from agent_sdk.clock import local_now
from agent_sdk.fork import leave_to_parent, renew_in_child
from agent_sdk.lazy import LazyModule
from agent_sdk.threads import begin, daemon

if TYPE_CHECKING:
    import asyncio

    from agent_sdk.store.store import Store
else:
    asyncio = LazyModule("asyncio")

log = logging.getLogger(__name__)

BLOCK_S = 3
"""Seconds that one call blocks; the connection waits a little longer for its answer."""

ANSWER_S = 2.0

RETRY_S = 0.25
"""Seconds of pause after the connection broke."""

HINTS = 100
"""Most hints that are taken at once."""

EARLY = 1000
"""Most hints in memory for tokens without a waiter yet.

An offer may be made before its waiter has read that it waits.
"""


class _Inbox:
    """Common part of both inboxes: the hints that came before their waiters."""

    def __init__(self, store: Store, base: str) -> None:
        self._store = replace(store, timeout_s=ANSWER_S, blocks_s=BLOCK_S)
        self._base = base
        self._early: dict[str, None] = {}

    def _call(self, client: str) -> tuple[str | int, ...]:
        return ("BLMPOP", BLOCK_S, 1, f"{self._base}:inbox:{client}", "LEFT", "COUNT", HINTS)

    def _keep_early(self, token: str) -> None:
        self._early[token] = None
        while len(self._early) > EARLY:
            self._early.pop(next(iter(self._early)), None)


def _tokens(found: list[Any] | None) -> list[str]:
    """Return the tokens of BLMPOP's answer, which is the list's name and a part, or None."""
    return found[1] if found else []


@dataclass(slots=True)
class _Waiter:
    """Waiting call: the queue of its hint, and the time at which it asks anyway."""

    hint: SimpleQueue[None]
    until: float


class Inbox(_Inbox):
    """Inbox with one daemon thread that wakes the waiting threads of its process.

    No lock is taken: a signal may interrupt a waiting call anywhere, or its handler wait here
    itself. A waiter registers before it checks for an early hint, and the listener keeps a hint
    before it checks for a waiter; so one of the two sees the other.
    """

    def __init__(self, store: Store, base: str) -> None:
        super().__init__(store, base)
        renew_in_child(self)

    def reset(self) -> None:
        """Start over: a forked child waits on an inbox of its own."""
        self._early = {}
        self._waiting: dict[str, _Waiter] = {}
        self._thread: threading.Thread | None = None
        self._pool: Any = None  # that of the last thread's connection

    def close(self) -> None:
        """End the listening now, if there is no waiter: it blocks for seconds."""
        if self._pool is not None:
            self._pool.hang_up()

    def wait(self, client: str, token: str, seconds: float) -> None:
        """Wait for a hint for the token, at most until it is time to ask anyway."""
        waiter = _Waiter(SimpleQueue(), local_now() + seconds)
        self._waiting[token] = waiter
        try:
            if token in self._early:
                self._early.pop(token, None)
            else:
                self._listen(client)
                waiter.hint.get(timeout=seconds)
        except Empty:
            pass
        finally:
            self._waiting.pop(token, None)

    def _listen(self, client: str) -> None:
        """Start a thread, if one can be had: without one the waiters poll.

        Of two that are started at once, the first is replaced, and ends.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = thread = daemon(self._run, "gpu-lease-inbox", client)
        try:
            begin(thread)
        except RuntimeError as error:
            log.warning("waiting without hints: %s", error)

    def _run(self, client: str) -> None:
        redis = self._store.connect()
        self._pool = redis.connection_pool
        try:
            while self._wanted():
                try:
                    found = redis.execute_command(*self._call(client))  # type: ignore[no-untyped-call] # redis-py
                except RedisError:
                    if self._wake_all():
                        time.sleep(RETRY_S)
                else:
                    self._deliver(found)
        finally:
            redis.close()

    def _wanted(self) -> bool:
        """Tell whether this thread is the listening one, and has a waiter."""
        me, overdue = threading.current_thread(), local_now() - ANSWER_S
        for token, waiter in list(self._waiting.items()):
            if waiter.until < overdue:  # it was interrupted before it could leave
                self._waiting.pop(token, None)
        if self._thread is me and not self._waiting:
            self._thread = None
            if self._waiting and self._thread is None:  # a new waiter saw this thread
                self._thread = me
        return self._thread is me

    def _deliver(self, found: list[Any] | None) -> None:
        for token in _tokens(found):
            if token not in self._waiting:
                self._keep_early(token)
            if waiter := self._waiting.get(token):
                self._early.pop(token, None)
                waiter.hint.put(None)

    def _wake_all(self) -> bool:
        """Make all waiters ask; tell whether there is one."""
        waiters = list(self._waiting.values())
        for waiter in waiters:
            waiter.hint.put(None)
        return bool(waiters)


class AsyncInbox(_Inbox):
    """Inbox with one task that wakes the waiting tasks of its event loop; it ends with the last."""

    def __init__(self, store: Store, base: str) -> None:
        super().__init__(store, base)
        self._task: asyncio.Task[None] | None = None
        renew_in_child(self)

    def reset(self) -> None:
        """Forget everything: a forked child listens anew and cancels nothing of its parent's."""
        if self._task is not None:
            leave_to_parent(self._task)
        self._task = None
        self._early = {}
        self._waiting: dict[str, asyncio.Event] = {}

    async def wait(self, client: str, token: str, seconds: float) -> None:
        """Wait for a hint for the token, at most until it is time to ask anyway."""
        hint = asyncio.Event()
        if token in self._early:
            del self._early[token]
            hint.set()
        self._waiting[token] = hint
        self._listen(client)
        try:
            async with asyncio.timeout(seconds):
                await hint.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(token, None)

    def _listen(self, client: str) -> None:
        """Start a task, unless one of this loop listens.

        One that was cancelled before it began could not say so itself.
        """
        loop, task = asyncio.get_running_loop(), self._task
        if task is None or task.done() or task.get_loop() is not loop:
            self._task = loop.create_task(self._run(client), name="gpu-lease-inbox")

    async def _run(self, client: str) -> None:
        redis = self._store.connect_async()
        try:
            while self._waiting:
                try:
                    found = await redis.execute_command(*self._call(client))  # type: ignore[no-untyped-call] # redis-py
                except RedisError:
                    for hint in self._waiting.values():
                        hint.set()
                    await asyncio.sleep(RETRY_S)
                else:
                    self._deliver(found)
        finally:
            if self._task is asyncio.current_task():
                self._task = None  # a waiter that comes during the disconnect starts another
            await redis.aclose()

    def _deliver(self, found: list[Any] | None) -> None:
        for token in _tokens(found):
            if token in self._waiting:
                self._waiting[token].set()
            else:
                self._keep_early(token)

    async def close(self) -> None:
        """Stop listening."""
        task = self._task
        self.let_go()
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait({task})  # unlike the task itself, it tells a cancelled caller apart

    def let_go(self) -> None:
        """Stop listening soon; from any thread."""
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and so it has ended
                task.get_loop().call_soon_threadsafe(task.cancel)
