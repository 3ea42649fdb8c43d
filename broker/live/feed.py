"""Pool's stream of events, read once for all of this replica; its newest part stays in memory."""

from __future__ import annotations

import asyncio
import gc
import logging
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's name for it
    NoPermissionError,
    RedisError,
    TimeoutError,  # noqa: A004 - redis-py's name for it
)

from agent_sdk.errors import BrokerUnavailable, Denied, LeaseError
from agent_sdk.state.events import START, Event, News, Tail, order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.protocol.messages import Read

    Place = tuple[str, int]

log = logging.getLogger(__name__)

BLOCK_S: Final = 3.0

ANSWER_S: Final = 2.0

GATHER_S: Final = 0.02
"""Least seconds from one reading's events to the next: what comes meanwhile is read together."""

RETRY_S: Final = 0.5

RIGHTS: Final = "+xread +xrange +xrevrange"

KEPT: Final = 10_000
"""Events in memory: as many as the stream has."""

SPARE: Final = 1_000
"""Events beyond that before they are cut off: a cut costs as much as the list is long."""

PART: Final = 100
"""Events before our start that are taken in at once."""

LOOK_S: Final = 5.0
"""Least seconds between two readings of the devices' places."""

LOAD_S: Final = 1.0
"""Most seconds that a follower waits for the events before the start."""

AWAY_S: Final = 5.0
"""Seconds without the stream after which the followers are told."""

CATCH_UP_S: Final = 1.0
"""Most seconds of lag behind the replica that a client comes from."""


@dataclass(slots=True)
class CachedEvent:
    """Event in memory.

    `frames` has its bytes as sent, by whether the token is whole.
    """

    event: Event
    order: tuple[int, int]
    frames: dict[bool, bytes] = field(default_factory=dict)


class Feed:
    """Newest events of the stream. A follower holds a position, and nothing is queued.

    Args:
        client: the pool's client.
        remember: called with the events before the start.
        hear: called with later news, in order.

    Attributes:
        last_id: the newest event's id.
        places: device id -> its host and index, as far as known.
    """

    def __init__(
        self,
        client: AsyncLeaseClient,
        remember: Callable[[Sequence[Event]], None],
        hear: Iterable[Callable[[News], None]],
    ) -> None:
        self._client = client
        self._remember = remember
        self._listeners = tuple(hear)
        self._events: list[CachedEvent] = []
        self._first = 0  # position of the first in `_events`
        # a follower that has seen this event, or a later one, has missed none
        self._floor = order(START)
        self.last_id = START
        self._news = asyncio.Event()
        self._loaded = asyncio.Event()
        self._looked_at = -LOOK_S
        self._failure = ""  # reason for which it is not read; empty: it is read
        self._kinds: set[type[Exception]] = set()  # kinds of reasons that were logged
        self._told_at = 0.0  # time at which the followers are told, on the loop's clock
        self.places: dict[str, Place] = {}

    @property
    def end(self) -> int:
        """Position after the newest event."""
        return self._first + len(self._events)

    @property
    def problem(self) -> str | None:
        """Obstacle to reading the stream, with the remedy; None: none, or only for a moment."""
        if self._failure and asyncio.get_running_loop().time() >= self._told_at:
            return self._failure
        return None

    async def loaded(self) -> bool:
        """Wait a second for the events before the start; return whether they are known."""
        await until_set(self._loaded, LOAD_S)
        return self._loaded.is_set()

    async def run(self) -> None:
        """Read the stream until cancelled, on a connection of its own."""
        store = replace(self._client.store, timeout_s=ANSWER_S, blocks_s=BLOCK_S)
        redis: Any = store.connect_async()
        tail: Tail | None = None
        try:
            while True:
                try:
                    if tail is None:
                        before = await self._client.events(KEPT)
                        tail = Tail(self._client.keys, before[-1].id if before else START)
                        await self._load(before)
                    news = tail.take(await _ask(redis, tail.ask(round(BLOCK_S * 1000))))
                    self._is_read()
                    await self._hear(news, tail.last)
                    if news.events:
                        await asyncio.sleep(GATHER_S)
                except (RedisError, LeaseError) as error:
                    self._is_not_read(error)
                    await asyncio.sleep(RETRY_S)
                except Exception:
                    # The tail is past it: no event may keep us from the ones that follow.
                    log.exception("some events of the stream could not be processed")
                    await asyncio.sleep(RETRY_S)
        finally:
            await redis.aclose()

    def _is_read(self) -> None:
        if self._failure:
            self._failure, self._kinds = "", set()
            log.info("the pool's events are read again, and none was missed")
            self.wake()

    def _is_not_read(self, error: Exception) -> None:
        """Log each kind of reason once, and try again until the stream can be read."""
        failure = f"the pool's events cannot be read: {error}"
        if isinstance(error, NoPermissionError | Denied):
            failure += f"; the broker's user needs {RIGHTS} on ~{self._client.keys.base}*"
        if not self._failure:
            passes = isinstance(error, ConnectionError | TimeoutError | BrokerUnavailable)
            self._told_at = asyncio.get_running_loop().time() + (AWAY_S if passes else 0)
        if type(error) not in self._kinds:
            self._kinds.add(type(error))
            log.warning("%s; until then /events and the page stand still", failure)
        self._failure = failure
        self.wake()

    async def _load(self, before: Sequence[Event]) -> None:
        """Load the events before the start, for returning followers and the last hour's plots."""
        try:
            for start in range(0, len(before), PART):
                part = before[start : start + PART]
                self._add(part)
                self._remember(part)
                await asyncio.sleep(0)
            with suppress(LeaseError):  # the first event of each device asks again
                found = await self._client.device_list()
                self.places = {each.uuid: (each.host, each.number) for each in found}
        finally:
            self._loaded.set()
            gc.freeze()  # thousands of events: a full collection need not look through them

    async def _hear(self, news: News, last_id: str) -> None:
        if news.gap:
            self._first = self.end + 1  # no follower's position is valid any more
            self._events = []
            self.last_id, self._floor = last_id, order(last_id)
        await self._place(news.events)
        self._add(news.events)
        if news.events or news.gap:
            for listener in self._listeners:
                listener(news)

    def _add(self, events: Sequence[Event]) -> None:
        self._events += [CachedEvent(event, order(event.id)) for event in events]
        if events:
            self.last_id = events[-1].id
            if self._floor == order(START):
                self._floor = order(events[0].id)
        if len(self._events) > KEPT + SPARE:
            gone = len(self._events) - KEPT
            self._floor = self._events[gone - 1].order
            del self._events[:gone]
            self._first += gone
        self.wake()

    def wake(self) -> None:
        """Wake all waiting followers."""
        self._news.set()
        self._news = asyncio.Event()

    async def _place(self, events: Sequence[Event]) -> None:
        """Learn the places of these events' devices, unless that was tried a moment ago."""
        moved = {uuid for x in events if x.event == "device" for uuid, _ in x.devices}
        unknown = {u for event in events for u, _ in event.devices if u not in self.places}
        now = asyncio.get_running_loop().time()
        if not (moved or unknown) or now < self._looked_at + (0 if moved else LOOK_S):
            return
        self._looked_at = now
        try:
            devices = await self._client.devices_of(moved | unknown)
        except LeaseError as error:
            log.debug("the devices' places cannot be read: %s", error)
            return
        self.places |= {device.uuid: (device.host, device.index) for device in devices}
        for event in events:
            if event.event == "device_forgotten":
                self.places.pop(event.fields.get("device", ""), None)

    def since(self, position: int, most: int) -> Sequence[CachedEvent] | None:
        """Return at most `most` events from a position on; None: some of them are gone."""
        if not self._first <= position <= self.end:
            return None
        begin = position - self._first
        return self._events[begin : begin + most]

    def newest(self, most: int) -> list[Event]:
        """Return the last events, the oldest of them first."""
        return [cached.event for cached in self._events[-most:]]

    async def position_after(self, event_id: str) -> int | None:
        """Return the position after an event; None: some of the later events are gone.

        Another replica may be a moment ahead: the event is waited for.
        """
        seen = order(event_id)
        until = asyncio.get_running_loop().time() + CATCH_UP_S
        while order(self.last_id) < seen:
            left_s = until - asyncio.get_running_loop().time()
            if left_s <= 0:
                return None
            await self.wait(left_s)
        if seen != order(START) and seen < self._floor:
            return None
        return self._first + bisect_right(self._events, seen, key=lambda kept: kept.order)

    async def wait(self, seconds: float) -> None:
        """Wait for news, at most for `seconds`."""
        await until_set(self._news, seconds)


async def until_set(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event to be set, at most for `seconds`."""
    with suppress(asyncio.TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _ask(redis: Any, read: Read) -> list[Any]:
    pipe = redis.pipeline(transaction=False)
    for command in read.commands:
        pipe.execute_command(*command)
    answer: list[Any] = await pipe.execute()
    return answer
