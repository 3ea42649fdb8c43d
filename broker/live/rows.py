"""Rows of the page by kind and id, and the changes that led to them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from broker.live.feed import until_set
from broker.serializers import lease_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_sdk.state.events import Event
    from broker.live.feed import Place

    Row = dict[str, Any]
    Rows = dict[str, dict[str, Row]]

T = TypeVar("T")

KINDS: Final = ("broker", "pool", "hosts", "devices", "leases", "queue", "teams", "minutes")
"""Kinds of rows; each row has an id of its own among its kind."""

RELATIVE: Final = ("report_age_s", "expires_in_s", "waiting_s")
"""Fields that change with time; a row has the time from which each is computed."""

CHANGES: Final = 256
"""Most changes in memory; a slower follower gets every row anew."""

TOLD: Final = 200
"""Most events that a new follower is told."""


class SnapshotTime(NamedTuple):
    """Time of the rows.

    Attributes:
        id: an event's id: it and all before it are in the rows.
        read_at: the reading on the pool's clock, epoch seconds; 0: there was none yet.
        looked: the same on our monotonic clock.
    """

    id: str
    read_at: float
    looked: float

    @property
    def now(self) -> float:
        """Pool's time, epoch seconds, also while the pool is away; 0: not known yet."""
        return self.read_at and self.read_at + time.monotonic() - self.looked


@dataclass(slots=True)
class RowChange:
    """Set of simultaneous changes.

    Attributes:
        now: the pool's time, epoch seconds; 0: not known yet.
        read_at: the time of the rows: before `now` while the store is away.
        rows: kind -> id -> the changed fields; of a new row all of them.
        gone: kind -> ids.
        texts: the JSON, by whether tokens are whole.
    """

    id: str
    now: float
    read_at: float
    events: Sequence[Event]
    rows: Rows
    gone: dict[str, list[str]]
    texts: dict[bool, str] = field(default_factory=dict)


class LiveRows:
    """Rows, shared by any number of followers.

    Attributes:
        rows: kind -> id -> fields, without those that change with time.
        moment: the time of the rows.
        version: grows with each change.
        told: the newest events, known to every follower.
    """

    def __init__(self) -> None:
        self.rows: Rows = {kind: {} for kind in KINDS}
        self.moment = SnapshotTime("", 0.0, 0.0)
        self.version = 0
        self.told: deque[Event] = deque(maxlen=TOLD)
        self._changes: deque[RowChange] = deque(maxlen=CHANGES)
        self._texts: dict[bool, str] = {}
        self._changed = asyncio.Event()

    @property
    def count(self) -> int:
        """Number of rows of leases, devices and waiters."""
        return sum(len(self.rows[kind]) for kind in ("devices", "leases", "queue"))

    def tell(self, events: Sequence[Event], rows: Rows, gone: Mapping[str, list[str]]) -> None:
        """Take rows in, and tell the followers the changes.

        Args:
            events: new events.
            rows: rows that may have changed, whole; an empty row is unchanged.
            gone: rows that ended.
        """
        other = {kind: self._other(kind, found) for kind, found in rows.items()}
        for kind, names in gone.items():
            for name in names:
                del self.rows[kind][name]
        self._texts = {}
        self.told += events
        at = self.moment
        change = RowChange(at.id, at.now, at.read_at, events, _kept(other), _kept(gone))
        if change.rows or change.gone or change.events:
            self.version += 1
            self._changes.append(change)
        self.wake()

    def _other(self, kind: str, found: Mapping[str, Row]) -> dict[str, Row]:
        """Take rows in; return the changed fields of the rows that have any."""
        known, changed = self.rows[kind], {}
        for name, row in found.items():
            if not row:
                continue
            kept = {key: value for key, value in row.items() if key not in RELATIVE}
            old = known.get(name, {})
            other = {k: v for k, v in kept.items() if k not in old or old[k] != v}
            changed[name] = other | dict.fromkeys(old.keys() - kept.keys())
            known[name] = kept
        return _kept(changed)

    def wake(self) -> None:
        """Wake all waiting followers."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for a change, at most for `seconds`."""
        await until_set(self._changed, seconds)

    def since(self, version: int) -> list[RowChange] | None:
        """Return the changes after that one; None: some of them are gone."""
        missed = self.version - version
        if missed > len(self._changes):
            return None
        return list(self._changes)[len(self._changes) - missed :]

    def whole(self, *, tokens: bool, **more: Any) -> str:
        """Return all as JSON: `id`, `now`, `read_at`, `rows`, and more.

        `tokens`: with whole tokens.
        """
        if tokens not in self._texts:
            self._texts[tokens] = _json(_masked(self.rows, tokens=tokens))
        at = self.moment
        said = {"id": at.id, "now": at.now, "read_at": at.read_at, **more}
        return f'{_json(said)[:-1]},"rows":{self._texts[tokens]}}}'


def change_text(change: RowChange, places: Mapping[str, Place], *, tokens: bool) -> str:
    """Return a change as JSON: `id`, `now`, `read_at`, `rows`, `gone`, `events`."""
    if tokens not in change.texts:
        said = {
            "id": change.id,
            "now": change.now,
            "read_at": change.read_at,
            "rows": _masked(change.rows, tokens=tokens),
            "gone": change.gone,
            "events": [lease_json.event(e, places, whole=tokens) for e in change.events],
        }
        change.texts[tokens] = _json(said)
    return change.texts[tokens]


def _masked(rows: Rows, *, tokens: bool) -> Rows:
    """Return the rows; the id of its row replaces a token that may not be shown."""
    if tokens:
        return rows
    return {
        kind: {n: r | {"token": n} if "token" in r else r for n, r in found.items()}
        for kind, found in rows.items()
    }


def _kept(found: Mapping[str, T]) -> dict[str, T]:
    """Return the entries that are not empty."""
    return {name: each for name, each in found.items() if each}


def _json(said: Any) -> str:
    return json.dumps(said, separators=(",", ":"))
