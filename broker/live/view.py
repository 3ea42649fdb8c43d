"""View of the pool for the page: it reads the parts that events touch, and at times all."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import LeaseError, error_for
from agent_sdk.state import pool_state as scenes
from agent_sdk.teams.policy import named
from agent_sdk.teams.status import statuses
from broker.live.feed import until_set
from broker.live.history import History
from broker.live.rows import LiveRows, SnapshotTime
from broker.live.single_flight import SingleFlight
from broker.live.slices import parts_of
from broker.live.sums import Sums
from broker.live.trends import Trends
from broker.serializers import device_json, lease_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.events import Event, News
    from agent_sdk.state.pool_state import PoolState
    from agent_sdk.state.snapshot import PoolStatus
    from agent_sdk.teams.status import TeamStatus
    from broker.live.feed import Feed
    from broker.live.rows import Row, Rows

log = logging.getLogger(__name__)

REREAD_S: Final = 5.0
"""Seconds between two readings of the whole pool: renewals and telemetry make no event."""

SAMPLE_S: Final = 15.0
"""Seconds between two readings of the devices while no page is open."""

REST: Final = 3.0
"""Pause after a reading as a multiple of its processor time: a large pool is read less often."""

BREATH: Final = 250
"""Rows that are made before other tasks get their turn."""

WIDE: Final = frozenset({"pool_created", "host_up", "host_away", "host_contested",
                         "device_contested", "device", "drained", "undrained",
                         "policy", "teams", "closed", "finding_raised", "finding_cleared",
                         "quarantined", "unquarantined", "xid", "process_ended",
                         "device_forgotten", "host_forgotten", "host_trouble",
                         "driver_released", "driver_taken"})  # fmt: skip
"""Events after which more may have changed than they name."""


@dataclass(slots=True)
class PendingChanges:
    """Changes since the last reading.

    Attributes:
        all: more may have changed than is named here.
        fresh: waiters for a reading of the whole pool.
    """

    all: bool = False
    tokens: set[str] = field(default_factory=set)
    uuids: set[str] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    fresh: list[asyncio.Future[bool]] = field(default_factory=list)


class View:
    """View of one replica, kept up to date.

    Args:
        client: the pool's client.
        about: this replica's own row.

    Attributes:
        shown: the rows of the last reading.
        trends: the last minutes of each device.
        sums: figures of all devices at the last reading.
    """

    def __init__(self, client: AsyncLeaseClient, about: Callable[[], Row]) -> None:
        self._client = client
        self._about = about
        self._history = History()
        self._scene: PoolState | None = None  # None: read it anew
        self._all_read = 0.0  # time of the last whole reading, on the monotonic clock
        self._heard = PendingChanges()
        self._watchers = 0
        self._sampling: SingleFlight[None] = SingleFlight()
        self._was_sampled = False
        self._wake = asyncio.Event()
        self._trouble = ""
        self.shown = LiveRows()
        self.trends = Trends()
        self.sums = Sums()

    def remember(self, events: Sequence[Event]) -> None:
        """Take the events before our start."""
        self._history.take(events)
        self.shown.told += events
        self._wake.set()  # earlier followers were told nothing yet

    def heard(self, news: News) -> None:
        """Take new events."""
        self._history.take(news.events)
        heard = self._heard
        heard.all |= news.gap or any(event.event in WIDE for event in news.events)
        heard.tokens |= {event.token for event in news.events if event.token}
        heard.uuids |= {uuid for event in news.events for uuid, _ in event.devices}
        heard.events += news.events
        if self._watchers:
            self._wake.set()

    def glance(self) -> None:
        """Show this replica's own row now, if it changed."""
        if self._watchers and self.shown.rows["broker"] != self.own_row():
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
        """Wait for a whole reading that begins now; return False if the store did not answer.

        Await it while `watched`.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._heard.fresh.append(done)
        self._wake.set()
        return await done

    async def run(self, feed: Feed) -> None:
        """Read until cancelled."""
        while True:
            await until_set(self._wake, REREAD_S if self._watchers else SAMPLE_S)
            self._wake.clear()
            began = time.thread_time()  # what a reading costs, not what it waits for
            heard, self._heard = self._heard, PendingChanges()
            if self._watchers:
                await self._read(feed, heard)
            else:
                self._scene = None
                self.shown.told += heard.events
                await self._sampling.ask(self._sample)
            await asyncio.sleep(REST * (time.thread_time() - began))

    async def sampled(self) -> None:
        """Wait until all devices were read once; then their figures are known."""
        if not self._was_sampled:
            await self._sampling.ask(self._sample)

    async def _sample(self) -> None:
        try:
            pool = await self._client.pool()
            sums = Sums(free_mb=pool.free_mb)
            self.trends.begin(pool.now_ms)
            for part in parts_of(await self._client.device_list()):
                devices = await self._client.devices_of([each.uuid for each in part])
                self.trends.add(devices)
                sums.add(devices)
            self.trends.end()
            self._history.sample(pool, sums)
            self.sums, self._was_sampled = sums, True
        except Exception as error:  # noqa: BLE001 - the next look may do better
            self._say(error)
        else:
            self._say(None)

    def _take_in(self, pool: PoolStatus, devices: Sequence[DeviceStatus]) -> None:
        """Take a reading into the history and the trends."""
        self.sums = Sums(devices, pool.free_mb)
        self._history.sample(pool, self.sums)
        self.trends.sample(pool.now_ms, devices)

    async def _read(self, feed: Feed, heard: PendingChanges) -> None:
        """Read the changed part, or all; tell the followers the changes."""
        try:
            await self._read_what(feed, heard)
        except Exception as error:  # noqa: BLE001 - a follower must not wait for ever
            self._say(error)
            self._scene = None
            self.shown.tell(heard.events, {"broker": self.own_row()}, {})
            _settle(heard.fresh, answer=False)
        else:
            self._say(None)
            _settle(heard.fresh, answer=True)

    async def _read_what(self, feed: Feed, heard: PendingChanges) -> None:
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
        moment = SnapshotTime(event_id, scene.pool.now_ms / 1000, time.monotonic())
        self._take_in(scene.pool, tuple(scene.devices.values()))
        found = await self._found(scene, None if before is None else heard.tokens | heard.uuids)
        self._scene, self.shown.moment = scene, moment
        known = self.shown.rows
        gone = {kind: [*(known[kind].keys() - ids.keys())] for kind, ids in found.items()}
        self.shown.tell(heard.events, found, gone)

    def _say(self, error: Exception | None) -> None:
        """Log why the pool cannot be read, when the reason changes."""
        trouble = "" if error is None else f"{type(error).__name__}: {error}"
        if trouble and trouble != self._trouble:
            if isinstance(error, LeaseError):  # the ticker logs it, too
                log.debug("the pool cannot be read: %s", error)
            else:
                log.error("the pool cannot be read", exc_info=error)
        self._trouble = trouble

    async def _found(self, scene: PoolState, touched: set[str] | None) -> Rows:
        """Return every present row; an unchanged one is empty.

        `touched`: the uuids and tokens that changed; None: all.
        """
        now_ms, shown = scene.pool.now_ms, self.shown.rows
        # Many different requests times many devices take seconds; a scene never changes.
        standings = await asyncio.to_thread(scenes.standings, scene)
        rows: Rows = {
            "broker": self.own_row(),
            "pool": {"pool": self.pool_row(scene.pool)},
            "hosts": {
                name: dict(lease_json.host(host, now_ms)) for name, host in scene.hosts.items()
            },
            "devices": {},
            "leases": {},
            "queue": {},
            "teams": lease_json.teams(_teams(scene)),
            "minutes": self.minutes(),
        }
        made, names = 0, {token: lease_json.name_of(x) for token, x in scene.leases.items()}

        def named(token: str) -> str:
            return names.get(token) or lease_json.masked(token)

        for uuid, device in scene.devices.items():
            known = touched is not None and uuid not in touched and uuid in shown["devices"]
            free_mb = scene.free_mb(device)
            rows["devices"][uuid] = {} if known else device_json.row(device, named, free_mb)
            made = await _breathe(made + (not known))
        for token, lease in scene.leases.items():
            name = lease_json.name_of(lease)
            known = touched is not None and token not in touched and name in shown["leases"]
            rows["leases"][name] = (
                {} if known else dict(lease_json.known(lease, scene.devices, now_ms))
            )
            made = await _breathe(made + (not known))
        for token, waiter in scene.waiters.items():
            stands = standings[token]
            asked = lease_json.waiter(waiter, now_ms) | {
                "code": stands.code,
                "why": stands.says,
                "devices_say": stands.devices,
            }
            rows["queue"][lease_json.name_of(waiter)] = asked
            made = await _breathe(made + 1)
        return rows

    def own_row(self) -> dict[str, Row]:
        """Return this replica's own row."""
        return {"broker": self._about()}

    def minutes(self) -> dict[str, Row]:
        """Return the rows of the last hour."""
        return self._history.rows()

    def pool_row(self, pool: PoolStatus) -> Row:
        """Return the row of the pool."""
        return lease_json.policy(pool, safe_mode=pool.safe_mode) | {
            "name": self._client.keys.pool_name,
            "ready": pool.ready,
            "closed_until": pool.closed_until_ms / 1000 or None,
            "waiting": pool.waiting,
            "leases": pool.active_leases,
            "cpu_leases": pool.active_cpu_leases,
        }


def _teams(scene: PoolState) -> tuple[TeamStatus, ...]:
    """Return how teams stand; none, where no team has a policy."""
    if not scene.policies:
        return ()
    models = dict.fromkeys(named(scene.policies), 0)
    for device in scene.devices.values():
        if device.model in models:
            models[device.model] += device.total_mb - device.system_mb
    return statuses(
        scene.policies,
        scene.sums,
        now_ms=scene.pool.now_ms,
        half_life_s=scene.pool.half_life_s,
        capacity_mb=scene.pool.capacity_mb,
        by_model=models,
    )


async def _breathe(made: int) -> int:
    if made % BREATH == BREATH - 1:
        await asyncio.sleep(0)
        made += 1
    return made


def _settle(waiting: list[asyncio.Future[bool]], *, answer: bool) -> None:
    for each in waiting:
        if not each.done():
            each.set_result(answer)
