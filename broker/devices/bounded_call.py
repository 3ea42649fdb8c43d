"""Call into a driver that may never return."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class BoundedCall(Generic[T]):
    """One call of `work` on a daemon thread of its own, begun at construction.

    A thread stuck in the kernel cannot be ended, only left behind: being a daemon, it does
    not keep the process from exiting either. `then` is called on it at the end.
    """

    def __init__(
        self, work: Callable[[], T], name: str, then: Callable[[], object] | None = None
    ) -> None:
        self._work = work
        self._then = then
        self._began = time.monotonic()
        self._ended = self._began
        self._done = threading.Event()
        self._results: list[T] = []
        self._error: Exception | None = None
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError as error:  # the process may start no more threads
            self._error = error
            self._done.set()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except Exception as error:  # noqa: BLE001 - answer() raises it in the waiter
            self._error = error
        finally:
            self._ended = time.monotonic()
            self._done.set()
            if self._then is not None:
                self._then()

    @property
    def began(self) -> float:
        """Time of its begin, on `time.monotonic`."""
        return self._began

    @property
    def took_s(self) -> float | None:
        """Seconds that the call took; None: it has not ended."""
        return None if self.running else self._ended - self._began

    @property
    def running(self) -> bool:
        """True if the work has neither returned nor raised yet."""
        return not self._done.is_set()

    @property
    def age_s(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._began

    def answered_within(self, seconds: float) -> bool:
        """Wait at most `seconds`; return True once there is an answer."""
        return self._done.wait(max(0.0, seconds))

    def answer(self) -> T:
        """Return the result of the work, or raise its error; call it only after an answer."""
        if self._error is not None:
            raise self._error
        return self._results[0]
