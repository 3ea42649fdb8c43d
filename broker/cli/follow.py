"""Follower of the pool's event stream for a terminal, on a connection of its own."""

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
"""Longest wait of one look at the stream: Ctrl-C and an absent store are noticed soon."""


def last_of(found: Sequence[Event]) -> str:
    """Return the id after which every event is new to a reader of these."""
    return found[-1].id if found else START


class Follower:
    """Follower of the pool's events.

    Args:
        client: the pool's client.
        last: the id after which following begins.
    """

    def __init__(self, client: LeaseClient, last: str) -> None:
        self._redis: Any = replace(client.store, timeout_s=ANSWER_S, blocks_s=LONGEST_S).connect()
        self._tail = Tail(client.keys, last)

    @property
    def last(self) -> str:
        """Id of the last event that was seen."""
        return self._tail.last

    def wait(self, seconds: float) -> News:
        """Return the events of the next `seconds`, a second at most; there may be none.

        After a gap come all unseen events that the stream still has.

        Raises:
            LeaseError: the store is away or denies it; the next look resumes at the same event.
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
        # A stream with a later end was trimmed: its oldest event was not seen yet.
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
