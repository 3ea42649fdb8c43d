"""Following the pool's stream of events from a terminal, on a connection of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import RedisError

from agent_sdk.state.events import START, Event, News, Tail, order
from broker.cli.store import lease_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from agent_sdk import LeaseClient

ANSWER_S: Final = 1.0

LONGEST_S: Final = 1.0
"""One look at the stream waits no longer, so that Ctrl-C and a store that is away are soon seen."""


def last_of(found: Sequence[Event]) -> str:
    """Return the id after which everything is new to who has seen these."""
    return found[-1].id if found else START


class Follower:
    """Waits for events.

    Args:
        client: of the pool.
        last: the id after which it begins.
    """

    def __init__(self, client: LeaseClient, last: str) -> None:
        self._redis: Any = replace(client.store, timeout_s=ANSWER_S, blocks_s=LONGEST_S).connect()
        self._tail = Tail(client.keys, last)

    @property
    def last(self) -> str:
        """The id of the event up to which all was seen."""
        return self._tail.last

    def wait(self, seconds: float) -> News:
        """Return what happens within so long, a second at most; nothing may.

        After a gap comes all that the stream still has and that was not seen.

        Raises:
            LeaseError: the store is away or denies it; the next look goes on where this one was.
        """
        block_ms = max(1, round(min(seconds, LONGEST_S) * 1000))
        pipe = self._redis.pipeline(transaction=False)
        for command in self._tail.ask(block_ms).commands:
            pipe.execute_command(*command)
        before = self._tail.last
        try:
            news = self._tail.take(pipe.execute())
        except RedisError as error:
            raise lease_error(error) from error
        # A stream that ends later was trimmed: its oldest event is already one that was not seen.
        if news.gap and order(self._tail.last) > order(before):
            self._tail.last = START
        return news

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
