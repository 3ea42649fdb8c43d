"""Requests of POST /lease that wait, and the queue in which they stand."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.api.brokers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

    from tests.api.brokers import Broker


class Asking(threading.Thread):
    """A request on its way."""

    def __init__(self, ask: Callable[[], httpx2.Response]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.answer: httpx2.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._ask()

    def result(self) -> Any:
        """Status and body."""
        self.join(20)
        assert self.answer is not None
        return self.answer.status_code, self.answer.json()


def queue(broker: Broker) -> list[dict[str, Any]]:
    """GET /queue."""
    body = broker.http.get("/queue").json()
    assert body["waiting"] == len(body["queue"])
    return list(body["queue"])


def waits(broker: Broker, count: int) -> None:
    """Wait until so many wait in the queue."""
    eventually(lambda: len(queue(broker)) == count, 5)
