"""Following the pool's stream of events from a terminal, on a connection of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from agent_sdk.events import START, News, Tail

if TYPE_CHECKING:
    from types import TracebackType

    from agent_sdk import LeaseClient

ANSWER_S: Final = 1.0

LONGEST_S: Final = 1.0
"""One look at the stream waits no longer, so that Ctrl-C and a store that is away are soon seen."""


class Follower:
    """Waits for events.

    Args:
        client: of the pool.
        last: the id after which it begins; None: what is newest at the first look.
    """

    def __init__(self, client: LeaseClient, last: str | None = None) -> None:
        self._client = client
        self._redis: Any = replace(client.store, timeout_s=LONGEST_S + ANSWER_S).connect()
        self._tail = None if last is None else Tail(client.keys, last)

    def wait(self, seconds: float) -> News:
        """What happens within so long, a second at most; nothing may.

        Raises:
            RedisError, LeaseError: the store is away; the next look goes on where this one was.
        """
        if self._tail is None:
            newest = self._client.events(1)
            self._tail = Tail(self._client.keys, newest[-1].id if newest else START)
        block_ms = max(1, round(min(seconds, LONGEST_S) * 1000))
        pipe = self._redis.pipeline(transaction=False)
        for command in self._tail.ask(block_ms).commands:
            pipe.execute_command(*command)
        return self._tail.take(pipe.execute())

    def __enter__(self) -> Self:
        """Disconnect at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""
        self._redis.close()
