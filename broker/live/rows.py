"""What is shown: rows by kind and id, and the changes by which they came to be what they are."""

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

KINDS: Final = ("broker", "pool", "hosts", "devices", "leases", "queue", "minutes")
"""What rows there are; each has an id of its own among its kind."""

RELATIVE: Final = ("report_age_s", "expires_in_s", "waiting_s")
"""What changes by itself; a row has the time from which it is reckoned."""

CHANGES: Final = 256
"""Kept for who is slow; who is slower gets everything anew."""

TOLD: Final = 200
"""Events that a newcomer is told."""


class SnapshotTime(NamedTuple):
    """Of when the rows are.

    Attributes:
        id: of an event: it and all before it are in the rows.
        read_at: on the pool's clock, epoch seconds; 0: nothing was read yet.
        looked: the same on our monotonic clock.
    """

    id: str
    read_at: float
    looked: float

    @property
    def now(self) -> float:
        """The pool's time, epoch seconds, also while it cannot be asked; 0: not known yet."""
        return self.read_at and self.read_at + time.monotonic() - self.looked


@dataclass(slots=True)
class RowChange:
    """What became other at once.

    Attributes:
        now: the pool's time, epoch seconds; 0: not known yet.
        read_at: of when the rows are: before `now` while the store is away.
        rows: kind -> id -> the fields that are other; of a new row all of them.
        gone: kind -> ids.
        texts: as JSON, by whether with whole tokens.
    """

    id: str
    now: float
    read_at: float
    events: Sequence[Event]
    rows: Rows
    gone: dict[str, list[str]]
    texts: dict[bool, str] = field(default_factory=dict)


class LiveRows:
    """The rows, for however many who look.

    Attributes:
        rows: kind -> id -> fields, but for what changes by itself.
        moment: of when they are.
        version: grows with each change.
        told: the newest events of which everybody who looks knows.
    """

    def __init__(self) -> None:
        self.rows: Rows = {kind: {} for kind in KINDS}
        self.moment = SnapshotTime("", 0.0, 0.0)
        self.version = 0
        self.told: deque[Event] = deque(maxlen=TOLD)
        self._changes: deque[RowChange] = deque(maxlen=CHANGES)
        self._texts: dict[bool, str] = {}
        self._changed = asyncio.Event()

    def tell(self, events: Sequence[Event], rows: Rows, gone: Mapping[str, list[str]]) -> None:
        """Take rows in, and let those who look know what is other.

        Args:
            events: that happened.
            rows: those that may be other, whole; an empty one is as it was.
            gone: those that are no more.
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
        """Take these rows in; the fields that are other, of those rows that have any."""
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
        """Let everybody look who waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until something has changed, or for so long."""
        await until_set(self._changed, seconds)

    def since(self, version: int) -> list[RowChange] | None:
        """Return the changes after that one; None: some of them are gone."""
        missed = self.version - version
        if missed > len(self._changes):
            return None
        return list(self._changes)[len(self._changes) - missed :]

    def whole(self, *, tokens: bool, **more: Any) -> str:
        """Everything as JSON: `id`, `now`, `read_at`, `rows`, and more. tokens: with whole ones."""
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
    """Return the rows; a token that may not be shown is its row's id."""
    if tokens:
        return rows
    return {
        kind: {n: r | {"token": n} if "token" in r else r for n, r in found.items()}
        for kind, found in rows.items()
    }


def _kept(found: Mapping[str, T]) -> dict[str, T]:
    """Return what is not empty."""
    return {name: each for name, each in found.items() if each}


def _json(said: Any) -> str:
    return json.dumps(said, separators=(",", ":"))
