"""The pool as a page shows it: rows, kept up to date while somebody looks, told as what changed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agent_sdk import scene as scenes
from agent_sdk.errors import LeaseError, error_for
from broker import answers
from broker.events import until_set
from broker.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.events import Event, News
    from agent_sdk.scene import Scene
    from broker.events import Feed, Place

    Row = dict[str, Any]
    Rows = dict[str, dict[str, Row]]

log = logging.getLogger(__name__)

KINDS: Final = ("broker", "pool", "hosts", "devices", "leases", "queue", "minutes")
"""What rows there are; each has an id of its own among its kind."""

RELATIVE: Final = ("report_age_s", "expires_in_s", "waiting_s")
"""What changes by itself; a row has the time from which it is reckoned."""

REREAD_S: Final = 5.0
"""Between two readings of everything: renewals and telemetry make no event."""

SAMPLE_S: Final = 15.0
"""Between two looks at the devices while nobody looks at us."""

REST: Final = 3.0
"""After a reading for so many times as long as it took: a large pool is read less often."""

BREATH: Final = 250
"""Rows that are made before others get their turn."""

WIDE: Final = frozenset({"pool_created", "host_up", "host_away", "device", "drained", "undrained",
                         "policy", "closed"})  # fmt: skip
"""Events after which more may have changed than what they name."""

CHANGES: Final = 256
"""Kept for who is slow; who is slower gets everything anew."""

TOLD: Final = 200
"""Events that a newcomer is told."""


@dataclass(slots=True)
class Heard:
    """What came since the last reading.

    Attributes:
        all: more may have changed than what is named here.
        fresh: who waits for a reading of everything.
    """

    all: bool = False
    tokens: set[str] = field(default_factory=set)
    uuids: set[str] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    fresh: list[asyncio.Future[bool]] = field(default_factory=list)


@dataclass(slots=True)
class Change:
    """What became other at once.

    Attributes:
        now: the pool's time, epoch seconds; 0: not known yet.
        read_at: the pool's time of which the rows are: before `now` while the store is away.
        rows: kind -> id -> the fields that are other; of a new row all of them.
        gone: kind -> ids.
        texts: as JSON, by whether with whole tokens.
    """

    version: int
    id: str
    now: float
    read_at: float
    events: Sequence[Event]
    rows: Rows
    gone: dict[str, list[str]]
    texts: dict[bool, str] = field(default_factory=dict)


class View:
    """The rows of one replica, for however many who look.

    Args:
        client: of the pool.
        about: this replica's own row.

    Attributes:
        version: grows with each change.
        id: of an event: it and all before it are in the rows.
        told: the newest events of which everybody who looks knows.
    """

    def __init__(self, client: AsyncLeaseClient, about: Callable[[], Row]) -> None:
        self._client = client
        self._about = about
        self._history = History()
        self._scene: Scene | None = None  # None: to be read anew
        self._all_read = 0.0  # when everything was, on the monotonic clock
        self._read_at = 0.0  # when anything was, on the pool's clock
        self._ahead_s = 0.0  # of the pool's clock before the monotonic one
        self._rows: Rows = {kind: {} for kind in KINDS}
        self._changes: deque[Change] = deque(maxlen=CHANGES)
        self._texts: dict[bool, str] = {}
        self._heard = Heard()
        self._watchers = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._trouble = ""
        self.version = 0
        self.id = ""
        self.told: deque[Event] = deque(maxlen=TOLD)

    def remember(self, events: Sequence[Event]) -> None:
        """What happened before our start."""
        self._history.take(events)
        self.told += events

    def heard(self, news: News) -> None:
        """What happened now."""
        self._history.take(news.events)
        heard = self._heard
        heard.all |= news.gap or any(event.event in WIDE for event in news.events)
        heard.tokens |= {event.token for event in news.events if event.token}
        heard.uuids |= {uuid for event in news.events for uuid, _ in event.devices}
        heard.events += news.events
        if self._watchers:
            self._wake.set()

    def glance(self) -> None:
        """Look at this replica's own row now, if it is other than what was told."""
        if self._watchers and self._rows["broker"] != self._broker():
            self._wake.set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the rows up to date for the length of the block."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    async def fresh(self) -> bool:
        """Until all was read, beginning now; False: the store did not answer.

        To be awaited while `watched`.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._heard.fresh.append(done)
        self._wake.set()
        return await done

    async def wait(self, seconds: float) -> None:
        """Until something has changed, or for so long."""
        await until_set(self._changed, seconds)

    async def run(self, feed: Feed) -> None:
        """Until cancelled."""
        while True:
            await until_set(self._wake, REREAD_S if self._watchers else SAMPLE_S)
            self._wake.clear()
            began = time.monotonic()
            heard, self._heard = self._heard, Heard()
            if self._watchers:
                await self._read(feed, heard)
            else:
                self._scene = None
                self.told += heard.events
                await self._sample()
            await asyncio.sleep(REST * (time.monotonic() - began))

    async def _sample(self) -> None:
        try:
            self._history.sample(await self._client.pool(), await self._client.devices())
        except Exception as error:  # noqa: BLE001 - the next look may do better
            self._say(error)
        else:
            self._say(None)

    async def _read(self, feed: Feed, heard: Heard) -> None:
        """Read what changed, or all; tell those who look what is other."""
        try:
            await self._read_what(feed, heard)
        except Exception as error:  # noqa: BLE001 - who looks must not look at it for ever
            self._say(error)
            self._scene = None
            rows = {"broker": self._broker()}
            self._tell(Change(0, self.id, self._now, self._read_at, heard.events, rows, {}))
            _settle(heard.fresh, answer=False)
        else:
            self._say(None)
            _settle(heard.fresh, answer=True)

    async def _read_what(self, feed: Feed, heard: Heard) -> None:
        if not await feed.loaded():
            raise error_for("store_unavailable")
        event_id, before = feed.last_id, self._scene
        if heard.all or heard.fresh or time.monotonic() > self._all_read + REREAD_S:
            before = None
        if before is None:
            scene = await self._client.scene()
            self._all_read = time.monotonic()
        else:
            scene = await self._client.scene_again(before, heard.tokens, heard.uuids)
        self._read_at = scene.pool.now_ms / 1000
        self._ahead_s = self._read_at - time.monotonic()
        self._history.sample(scene.pool, tuple(scene.devices.values()))
        found = await self._found(scene, None if before is None else heard.tokens | heard.uuids)
        self._scene, self.id = scene, event_id
        gone = {kind: [*(self._rows[kind].keys() - ids.keys())] for kind, ids in found.items()}
        rows = {kind: {n: r for n, r in ids.items() if r} for kind, ids in found.items()}
        self._tell(Change(0, event_id, self._now, self._read_at, heard.events, rows, gone))

    def _say(self, error: Exception | None) -> None:
        """Say why the pool cannot be read, when that is something else than before."""
        trouble = "" if error is None else f"{type(error).__name__}: {error}"
        if trouble and trouble != self._trouble:
            if isinstance(error, LeaseError):  # the ticker says it, too
                log.debug("the pool cannot be read: %s", error)
            else:
                log.error("the pool cannot be read", exc_info=error)
        self._trouble = trouble

    @property
    def _now(self) -> float:
        """The pool's time, epoch seconds, also while it cannot be asked; 0: never read."""
        return self._ahead_s + time.monotonic() if self._read_at else 0.0

    async def _found(self, scene: Scene, touched: set[str] | None) -> Rows:
        """Every row there is now; an empty one is as it was. touched: uuids, tokens; None: all."""
        now_ms = scene.pool.now_ms
        # Many who ask differently times many devices are seconds; a scene never changes.
        line = await asyncio.to_thread(scenes.line, scene)
        rows: Rows = {
            "broker": self._broker(),
            "pool": {"pool": self._pool(scene)},
            "hosts": {name: answers.host(host, now_ms) for name, host in scene.hosts.items()},
            "devices": {},
            "leases": {},
            "queue": {},
            "minutes": self._history.rows(),
        }
        made = 0
        for uuid, device in scene.devices.items():
            known = touched is not None and uuid not in touched and uuid in self._rows["devices"]
            rows["devices"][uuid] = {} if known else answers.gpu(device)
            made = await _breathe(made + (not known))
        for token, lease in scene.leases.items():
            name = answers.name_of(lease)
            known = touched is not None and token not in touched and name in self._rows["leases"]
            rows["leases"][name] = {} if known else answers.known(lease, scene.devices, now_ms)
            made = await _breathe(made + (not known))
        for token, waiter in scene.waiters.items():
            stands = line[token]
            asked = answers.waiter(waiter, now_ms) | {
                "code": stands.code,
                "why": stands.says,
                "devices_say": stands.devices,
            }
            rows["queue"][answers.name_of(waiter)] = asked
            made = await _breathe(made + 1)
        return rows

    def _broker(self) -> dict[str, Row]:
        return {"broker": self._about()}

    def _pool(self, scene: Scene) -> Row:
        pool = scene.pool
        return answers.policy(pool, safe_mode=pool.safe_mode) | {
            "name": self._client.keys.pool_name,
            "ready": pool.ready,
            "closed_until": pool.closed_until_ms / 1000 or None,
            "waiting": pool.waiting,
            "leases": pool.active_leases,
            "cpu_leases": pool.active_cpu_leases,
        }

    def _tell(self, change: Change) -> None:
        """Take a change into the rows, cut down to what is other, and let those who look know."""
        for kind, rows in change.rows.items():
            known = self._rows[kind]
            for name, row in rows.items():
                kept = {key: value for key, value in row.items() if key not in RELATIVE}
                old = known.get(name, {})
                other = {k: v for k, v in kept.items() if k not in old or old[k] != v}
                rows[name] = other | dict.fromkeys(old.keys() - kept.keys())
                known[name] = kept
            change.rows[kind] = {name: row for name, row in rows.items() if row}
        for kind, names in change.gone.items():
            for name in names:
                del self._rows[kind][name]
        change.rows = {kind: rows for kind, rows in change.rows.items() if rows}
        change.gone = {kind: names for kind, names in change.gone.items() if names}
        self._texts = {}
        self.told += change.events
        if change.rows or change.gone or change.events:
            self.version = change.version = self.version + 1
            self._changes.append(change)
        self.wake()

    def wake(self) -> None:
        """Let everybody look who waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    def since(self, version: int) -> list[Change] | None:
        """The changes after that one; None: some of them are gone."""
        missed = self.version - version
        if missed > len(self._changes):
            return None
        return list(self._changes)[len(self._changes) - missed :]

    def whole(self, *, tokens: bool, **more: Any) -> str:
        """Everything as JSON: `id`, `now`, `read_at`, `rows`, and more. tokens: with whole ones."""
        if tokens not in self._texts:
            self._texts[tokens] = _json(_shown(self._rows, tokens=tokens))
        said = {"id": self.id, "now": self._now, "read_at": self._read_at, **more}
        return f'{_json(said)[:-1]},"rows":{self._texts[tokens]}}}'


def change_text(change: Change, places: Mapping[str, Place], *, tokens: bool) -> str:
    """A change as JSON: `id`, `now`, `read_at`, `rows`, `gone`, `events`."""
    if tokens not in change.texts:
        said = {
            "id": change.id,
            "now": change.now,
            "read_at": change.read_at,
            "rows": _shown(change.rows, tokens=tokens),
            "gone": change.gone,
            "events": [answers.event(e, places, whole=tokens) for e in change.events],
        }
        change.texts[tokens] = _json(said)
    return change.texts[tokens]


def _shown(rows: Rows, *, tokens: bool) -> Rows:
    """The rows; a token that may not be shown is its row's id."""
    if tokens:
        return rows
    return {
        kind: {n: r | {"token": n} if "token" in r else r for n, r in found.items()}
        for kind, found in rows.items()
    }


def _json(said: Any) -> str:
    return json.dumps(said, separators=(",", ":"))


async def _breathe(made: int) -> int:
    if made % BREATH == BREATH - 1:
        await asyncio.sleep(0)
        made += 1
    return made


def _settle(waiting: list[asyncio.Future[bool]], *, answer: bool) -> None:
    for each in waiting:
        if not each.done():
            each.set_result(answer)
