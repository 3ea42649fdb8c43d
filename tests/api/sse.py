"""A client of Server-Sent Events, as plain as the format."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.brokers import Broker


@dataclass(frozen=True)
class Message:
    """One message. id: empty where it has none; data: decoded."""

    id: str
    event: str
    data: dict[str, Any]


class Following:
    """An open stream."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[Message]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            else:
                if "data" in fields:
                    yield Message(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                fields = {}

    def take(self, count: int) -> list[Message]:
        """The next so many; httpx2.ReadTimeout when they do not come."""
        messages = iter(self)
        return [next(messages) for _ in range(count)]

    def comment(self) -> str:
        """The next comment; what comes before it is passed over."""
        return next(line[1:].strip() for line in self._lines if line.startswith(":"))

    def until(self, event: str) -> list[Message]:
        """Up to the first of that name, and that one."""
        found: list[Message] = []
        for message in self:
            found.append(message)
            if message.event == event:
                return found
        raise AssertionError(f"the stream ended without {event}: {found}")


@contextmanager
def following(
    broker: Broker, path: str = "/events", *, silent_s: float = 5, **headers: str
) -> Iterator[Following]:
    """Follow a path; silent_s: how long nothing may come."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    timeout = httpx2.Timeout(5, read=silent_s)
    with broker.http.stream("GET", path, headers=named, timeout=timeout) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield Following(answer)
