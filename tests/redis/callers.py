"""Callers in the background that note each call that succeeded."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent_sdk import LeaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


AGAIN_S = 1.0
"""After a Sentinel names the new primary, calls succeed within that."""


@dataclass
class Caller:
    """Calls again and again, and notes when each call that succeeded began and ended."""

    call: Callable[[], object]
    done: list[tuple[float, float]] = field(default_factory=list)
    failed: list[LeaseError] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.wait(0.01):
            began = time.monotonic()
            try:
                self.call()
            except LeaseError as error:
                self.failed.append(error)
            else:
                self.done.append((began, time.monotonic()))

    def first_after(self, moment: float) -> float:
        """Return the end of the first successful call after a moment."""
        return next((end for _, end in self.done if end > moment), float("inf"))

    def end(self) -> None:
        self.stop.set()
        self.thread.join()


@contextmanager
def calling(**calls: Callable[[], object]) -> Iterator[dict[str, Caller]]:
    callers = {name: Caller(call) for name, call in calls.items()}
    try:
        yield callers
    finally:
        for caller in callers.values():
            caller.end()
