"""Callbacks of holders, run by threads of their own: a slow one delays no renewal.

One lease's callbacks run one after another, in order; those of several leases side by side, on
`WORKERS` threads at most, which end with their work. A callback that waits already is not queued
again, so the queue never grows past the callbacks that holders registered.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from agent_sdk.fork import renew_in_child
from agent_sdk.threads import begin, daemon

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

WORKERS = 16
"""Leases whose callbacks run at once; those of other leases wait for a free thread."""


class Callbacks:
    """Waiting callbacks, by lease, and the threads that run them."""

    def __init__(self) -> None:
        renew_in_child(self)

    def reset(self) -> None:
        """Forget everything: a forked child runs no callback of its parent's."""
        self._lock = threading.RLock()
        self._waiting: dict[object, deque[tuple[str, Callable[[], object]]]] = {}
        self._ready: deque[object] = deque()
        self._workers = 0

    def submit(self, lease: object, name: str, callback: Callable[[], object]) -> None:
        """Run a callback of a lease soon; here and now if no thread can be had."""
        with self._lock:
            waiting = self._waiting.get(lease)
            if waiting is not None:  # a worker has the lease, or will have it
                if (name, callback) not in waiting:
                    waiting.append((name, callback))
                return
            self._waiting[lease] = deque([(name, callback)])
            self._ready.append(lease)
            if self._workers == WORKERS:
                log.error(
                    "%d callbacks have not returned: %s of %r waits for one", WORKERS, name, lease
                )
                return
            self._workers += 1
        try:
            begin(daemon(self._work, "gpu-lease-callback"))
        except RuntimeError as error:
            log.warning("%s of %r delays the renewals: %s", name, lease, error)
            self._work()

    def _work(self) -> None:
        while (lease := self._next()) is not None:
            while (call := self._next_of(lease)) is not None:
                run(lease, *call)

    def _next(self) -> object | None:
        """Return a lease with a waiting callback; None: this worker ends."""
        with self._lock:
            if self._ready:
                return self._ready.popleft()
            self._workers -= 1
            return None

    def _next_of(self, lease: object) -> tuple[str, Callable[[], object]] | None:
        with self._lock:
            if self._waiting[lease]:
                return self._waiting[lease].popleft()
            del self._waiting[lease]
            return None


def run(lease: object, name: str, callback: Callable[[], object]) -> None:
    """Run a callback, and log whatever it raises, since no caller could see it."""
    try:
        callback()
    except BaseException:
        log.exception("%s of %r failed", name, lease)


callbacks = Callbacks()
"""Callbacks of all leases of this process."""
