"""Pool's stream of events, in order; docs/reference/events.md lists each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.readings import read_known, row, text

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys

Name: TypeAlias = Literal[
    "pool_created", "host_up", "host_away", "device", "granted", "released", "expired", "revoked",
    "waiting", "offered", "withdrawn", "reserved", "reservation_ended", "cancelled", "timed_out",
    "cooled", "preempting", "preempted", "preemption_withdrawn", "wanted", "extended",
    "revoke", "drained", "undrained", "policy", "teams", "closed", "recovered",
    "finding_raised", "finding_cleared", "quarantined", "unquarantined", "xid", "process_ended",
    "host_contested", "device_contested", "device_forgotten", "host_forgotten", "host_trouble",
    "driver_released", "driver_taken", "hook_disabled",
]  # fmt: skip

NAMES: Final[tuple[str, ...]] = get_args(Name)

START: Final = "0-0"
"""Position before every event."""

PAGE: Final = 1000

PART: Final = 100
"""Events of the past that are read at once: an event loop is not held while they are parsed."""

LONGEST: Final = 18
"""Most digits of a number in an event; a fence has 16."""


@dataclass(frozen=True, slots=True)
class Event:
    """Event of the stream.

    Attributes:
        id: its id in the stream, `ms-n`, by Redis's clock. Later ids are greater.
        event: a word of NAMES.
        fields: its other fields, by name.
    """

    id: str
    event: str
    fields: dict[str, str]

    @property
    def at_ms(self) -> int:
        """Time of the event, ms on Redis's clock."""
        return order(self.id)[0]

    @property
    def token(self) -> str | None:
        """Token of the event's lease or wait, if it has one."""
        return self.fields.get("token")

    @property
    def devices(self) -> tuple[tuple[str, int | None], ...]:
        """(device id, MiB) of each named device; MiB is None for a device that is not held."""
        if "device" in self.fields:
            return ((self.fields["device"], None),)
        named = self.fields.get("devices", "").split(",")
        return tuple(_named(part) for part in named if part)

    @property
    def fence(self) -> int | None:
        """Fence of the event's lease; None: it has none that is a number."""
        return _number(self.fields.get("fence", ""))

    @property
    def ended_ms(self) -> int | None:
        """End of the lease that it ended, ms on the pool's clock; None: it says no such number."""
        return _number(self.fields.get("ended_at_ms", ""))


def _named(part: str) -> tuple[str, int | None]:
    """Parse `uuid=mb`, or an id alone; any client may have written it to the stream."""
    uuid, _, mb = part.rpartition("=")
    held_mb = _number(mb)
    return (part, None) if not uuid or held_mb is None else (uuid, held_mb)


def _number(text: str) -> int | None:
    return int(text) if len(text) <= LONGEST and text.isdecimal() else None


def order(event_id: str) -> tuple[int, int]:
    """Return an id in the form by which ids are compared."""
    ms, _, number = event_id.partition("-")
    return int(ms), int(number)


def newest(keys: Keys, count: int) -> Generator[Read, Answer, tuple[Event, ...]]:
    """Read the last events, the oldest of them first."""
    found: list[Event] = []
    end, left = "+", count
    while left > 0:
        asked = min(left, PART)
        answer = yield from read_known(keys, ("XREVRANGE", keys.events, end, "-", "COUNT", asked))
        page = events_of(answer.raw[0])
        found += page
        if len(page) < asked:
            break
        end, left = f"({page[-1].id}", left - asked
    return tuple(reversed(found))


@dataclass(frozen=True, slots=True)
class News:
    """News at the stream's end.

    Attributes:
        gap: events before these are gone unseen, or the store lost its data; a follower then reads
            the whole pool again.
    """

    events: tuple[Event, ...]
    gap: bool = False


class Tail:
    """Follower of the stream: its commands and the reading of answers; the caller waits.

    Args:
        keys: the pool's keys.
        last: the id after which it begins.

    Attributes:
        last: the id of the last event that was seen.
    """

    def __init__(self, keys: Keys, last: str) -> None:
        self._key = keys.events
        self.last = last

    def ask(self, block_ms: int) -> Read:
        """Return the commands that wait for an event, for a connection of their own."""
        newer = ("XREAD", "COUNT", PAGE, "BLOCK", block_ms, "STREAMS", self._key, self.last)
        # After it: the ends of the stream tell whether events in between were missed.
        oldest = ("XRANGE", self._key, "-", "+", "COUNT", 1)
        return Read((newer, oldest, ("XREVRANGE", self._key, "+", "-", "COUNT", 1)))

    def take(self, raw: list[Any]) -> News:
        """Return the news in the answer to `ask`."""
        found, oldest, newest = events_of(_of_one(raw[0])), events_of(raw[1]), events_of(raw[2])
        first = oldest[0].id if oldest else START
        end = newest[0].id if newest else START
        trimmed = self.last != START and order(first) > order(self.last)
        if trimmed or order(end) < order(self.last):
            self.last = end
            return News((), gap=True)
        if found:
            self.last = found[-1].id
        return News(tuple(found))


@of_known_form
def _of_one(answer: Any) -> Any:
    """Return the entries of the one stream that XREAD was asked about; RESP2 and RESP3 differ."""
    if not answer:
        return ()
    return answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]


@of_known_form
def events_of(entries: Any) -> list[Event]:
    """Return the events of a stream's entries."""
    return [_event(text(name), row(fields)) for name, fields in entries or ()]


def _event(name: str, fields: dict[str, str]) -> Event:
    order(name)  # an id is a time and a number
    return Event(name, fields.get("event", ""), {k: v for k, v in fields.items() if k != "event"})
