"""Server-Sent Events of the pool. A client holds a position in the feed, never a queue."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Header, Query
from sse_starlette import EventSourceResponse, ServerSentEvent

from agent_sdk.errors import error_for
from agent_sdk.keys import EVENT_ID
from agent_sdk.state import events
from broker.http.auth import Viewer
from broker.http.document.described import DescribedRoute
from broker.http.openapi import EVERYWHERE, MALFORMED
from broker.http.requests import Agent, EventId, Name
from broker.live.rows import change_text
from broker.live.window import PAUSE_S, WHOLE, Extent, Window, is_large
from broker.replica import At, Broker
from broker.serializers import lease_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from agent_sdk.state.events import Event
    from broker.api_keys import Principal
    from broker.live.feed import CachedEvent, Feed
    from broker.live.rows import LiveRows

router = APIRouter(responses=EVERYWHERE, route_class=DescribedRoute, tags=["streams"])

STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}

CHUNK: Final = 500
"""Most events that are sent at once; a client that does not read costs no more."""

LOOK_S: Final = 5.0
"""Seconds between two checks of the client's right to follow."""

KEEP_ALIVE_S: Final = 15

LIVE_KEEP_ALIVE_S: Final = 5
"""Seconds between two signs of life; the page reports silence after three missing ones."""

GROWN: Final = 2 * WHOLE
"""Rows of a pool that is told whole, after which its follower has to come back and sees a part."""

REST: Final = 3.0
"""Pause of a window after a reading as a multiple of its duration."""

FIGURES_S: Final = 1.0
"""Most seconds that a window waits for the figures of all devices, after the broker's start."""

GRACE_S: Final = 1.0
"""Seconds in which a stream ends by itself when this process stops."""

RETRY_MS: Final = 1000
"""Milliseconds after which a client comes back."""


LastEventId = Annotated[
    str | None,
    Header(description="Id of the last event that was seen; one of no known form: `reset`."),
]


class Position(NamedTuple):
    """Position of a follower in the feed: a number, and the id of the last event before it."""

    number: int
    id: str


@router.get(
    "/events",
    operation_id="followEvents",
    summary="What happens, as it happens.",
    response_class=EventSourceResponse,
    responses=STREAM | MALFORMED,
)
async def follow_events(
    broker: At,
    who: Viewer,
    types: Annotated[list[events.Name] | None, Query(alias="type")] = None,
    hosts: Annotated[list[Name] | None, Query(alias="host")] = None,
    agents: Annotated[list[Agent] | None, Query(alias="agent")] = None,
    after: EventId | None = None,
    last_event_id: LastEventId = None,
    snapshot: Annotated[bool, Query()] = False,
) -> EventSourceResponse:
    """Stream Server-Sent Events, one for each event of the pool's stream, with its id.

    It begins now; or, with `Last-Event-ID` (or `after`), after that event: no event is missed and
    none comes twice, at any replica. Where that is impossible, and first with `snapshot`, comes
    `reset`: the whole pool, with all up to the id in it. While the store's stream cannot be read,
    `problem` gives the reason; later `problem` is null, and the missed events come.
    """
    feed, seen = broker.feed, last_event_id or after
    if not await feed.loaded():
        raise error_for("store_unavailable")
    wanted = filter_of(feed, types, agents, hosts)
    if seen is None:
        start = None if snapshot else Position(feed.end, feed.last_id)
    else:
        number = await feed.position_after(seen) if EVENT_ID.fullmatch(seen) else None
        start = None if number is None else Position(number, seen)
    return _response(broker, _follow(broker, who, start, wanted))


def _set(words: Sequence[str] | None) -> frozenset[str] | None:
    return None if words is None else frozenset(words)


def filter_of(
    feed: Feed,
    asked_types: Sequence[str] | None,
    asked_agents: Sequence[str] | None,
    asked_hosts: Sequence[str] | None,
) -> Callable[[events.Event], bool]:
    """Return a test of events against a filter, at a cost that its length does not change."""
    types, agents, hosts = _set(asked_types), _set(asked_agents), _set(asked_hosts)

    def wanted(event: events.Event) -> bool:
        if types is not None and event.event not in types:
            return False
        if agents is not None and event.fields.get("agent") not in agents:
            return False
        if hosts is None or event.fields.get("host") in hosts:
            return True
        return any(
            feed.places[uuid][0] in hosts for uuid, _ in event.devices if uuid in feed.places
        )

    return wanted


First = Annotated[int, Query(ge=0, le=10**7, description="Number of the first row.")]


@router.get(
    "/live",
    operation_id="followPool",
    summary="The pool as a page shows it, kept up to date.",
    response_class=EventSourceResponse,
    responses=STREAM | MALFORMED,
)
async def live(
    broker: At,
    who: Viewer,
    most: Annotated[int | None, Query(ge=1, le=500)] = None,
    q: Annotated[str, Query(max_length=200)] = "",
    devices: First = 0,
    leases: First = 0,
    queue: First = 0,
) -> EventSourceResponse:
    """Stream Server-Sent Events: `reset` has every row, each `change` the changed fields.

    `trends` of a reset has the last ten minutes of each GPU: `[step, busy %, memory %]`.
    With `most`, of a pool with more than 6,000 rows only so many rows of each list are told, from
    the first one asked for, of those whose text holds every word of `q`; `large` of the pool's row
    has the figures of the whole pool then.
    For the page at `/`, whose rows may grow. A client that comes back gets everything anew.
    """
    if most is not None and await is_large(broker.client):
        look = Extent(most, tuple(q.lower().split()), devices, leases, queue)
        return _response(broker, _seen(broker, who, look), LIVE_KEEP_ALIVE_S)
    bounded = most is not None
    return _response(broker, _live(broker, who, bounded=bounded), LIVE_KEEP_ALIVE_S)


def _response(
    broker: Broker, content: AsyncIterator[bytes], keep_alive_s: int = KEEP_ALIVE_S
) -> EventSourceResponse:
    return EventSourceResponse(
        content,
        ping=keep_alive_s,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive"),
        shutdown_event=broker.stopping,
        shutdown_grace_period=GRACE_S,
    )


async def _follow(
    broker: Broker,
    who: Principal,
    position: Position | None,
    wanted: Callable[[events.Event], bool],
) -> AsyncIterator[bytes]:
    """Yield all wanted events from a position on; None: first a reset.

    A client that comes back goes on after the last id that it was told, so none is ahead of it.
    """
    feed, whole = broker.feed, who.is_at_least("operator")
    told: str | None = None
    yield _frame(retry=RETRY_MS)
    while broker.serves(who):
        if feed.problem != told:
            told = feed.problem
            yield _frame(json.dumps({"problem": told}), "problem", position and position.id)
        found = None if position is None else feed.since(position.number, CHUNK)
        if position is None or found is None:
            position = None
            reset = await _snapshot(broker, who, told, whole=whole)
            if reset is None:
                continue
            yield _frame(reset[1], "reset", reset[0])
            number = await feed.position_after(reset[0])
            position = None if number is None else Position(number, reset[0])
        elif found:
            position = Position(position.number + len(found), found[-1].event.id)
            if chunk := b"".join(_event(broker, x, whole=whole) for x in found if wanted(x.event)):
                yield chunk
        else:
            await feed.wait(LOOK_S)


async def _snapshot(
    broker: Broker, who: Principal, told: str | None, *, whole: bool
) -> tuple[str, str] | None:
    """Return an event's id, and the pool with all up to it.

    None: access has ended, or there is another problem than was told.
    """
    view, shown = broker.view, broker.view.shown
    with view.watched():
        while broker.serves(who) and broker.feed.problem == told:
            if await view.fresh():
                return shown.moment.id, shown.whole(tokens=whole)
            await shown.wait(LOOK_S)
    return None


async def _live(broker: Broker, who: Principal, *, bounded: bool = False) -> AsyncIterator[bytes]:
    """Yield all rows; `bounded`: until there are too many of them."""
    view, feed, whole = broker.view, broker.feed, who.is_at_least("operator")
    shown = view.shown
    yield _frame(retry=RETRY_MS)
    with view.watched():
        await view.fresh()  # without the store: the last picture, and the problem
        version: int | None = None
        while broker.serves(who) and not (bounded and shown.count > GROWN):
            changes = None if version is None else shown.since(version)
            version = shown.version
            if changes is None:
                yield _reset(broker, who, shown, shown.told, view.trends.told())
            elif changes:
                texts = [(change_text(c, feed.places, tokens=whole), c.id) for c in changes]
                yield b"".join(_frame(text, "change", at) for text, at in texts)
            else:
                await shown.wait(LOOK_S)


async def _seen(broker: Broker, who: Principal, look: Extent) -> AsyncIterator[bytes]:
    """Yield what is seen of a large pool."""
    feed, whole = broker.feed, who.is_at_least("operator")
    yield _frame(retry=RETRY_MS)
    await feed.loaded()
    with suppress(TimeoutError):  # the rows come, and the figures once they are known
        async with asyncio.timeout(FIGURES_S):
            await broker.view.sampled()
    window = Window(broker.client, broker.view, feed, look)
    version: int | None = None
    while broker.serves(who):
        began = time.monotonic()
        await window.read()
        changes = None if version is None else window.shown.since(version)
        version = window.shown.version
        if changes is None:
            yield _reset(broker, who, window.shown, window.told, window.trends())
        elif changes:
            texts = [(change_text(c, feed.places, tokens=whole), c.id) for c in changes]
            yield b"".join(_frame(text, "change", at) for text, at in texts)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(PAUSE_S, REST * (time.monotonic() - began))):
                await broker.stopping.wait()


def _reset(
    broker: Broker, who: Principal, shown: LiveRows, told: Iterable[Event], trends: dict[str, Any]
) -> bytes:
    """Return the message with every row."""
    whole = who.is_at_least("operator")
    said = [lease_json.event(e, broker.feed.places, whole=whole) for e in told]
    you = {"name": who.name, "role": who.role, "keys": broker.keys.locked}
    text = shown.whole(tokens=whole, you=you, events=said, trends=trends)
    return _frame(text, "reset", shown.moment.id)


def _event(broker: Broker, kept: CachedEvent, *, whole: bool) -> bytes:
    """Return an event as it is sent; its bytes are made once for all clients."""
    if whole not in kept.frames:
        said = lease_json.event(kept.event, broker.feed.places, whole=whole)
        kept.frames[whole] = _frame(json.dumps(said), kept.event.event, kept.event.id)
    return kept.frames[whole]


def _frame(
    data: str | None = None,
    event: str | None = None,
    at: str | None = None,
    *,
    retry: int | None = None,
) -> bytes:
    return ServerSentEvent(data, event=event, id=at, retry=retry, sep="\n").encode()
