"""Part of a large pool that one follower sees: pages of its lists, read again and again.

A pool with few rows is told whole, and the page filters it. Of a larger one only what is seen is
read: so it costs the broker as much as a small pool, however large it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import CODES, LeaseError
from agent_sdk.protocol.refusals import party_says
from agent_sdk.state.pool_state import STANDING
from broker.live.rows import LiveRows, SnapshotTime
from broker.live.slices import Turns
from broker.serializers import device_json, lease_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.state.lists import DeviceEntry
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import PoolStatus
    from broker.live.feed import Feed
    from broker.live.rows import Row, Rows
    from broker.live.view import View

WHOLE: Final = 6000
"""Most GPUs, leases and waiters together that are told whole."""

PAUSE_S: Final = 2.0
"""Seconds between two readings of what is seen."""

LISTED_S: Final = 15.0
"""Seconds between two readings of the lists, at least; a reading that takes long is made less."""

REST: Final = 20.0
"""Pause after a reading of the lists as a multiple of its duration."""


SPARE: Final = 2
"""Leases that are known by name for each that is shown: others take the place of those that end."""

EVENTS: Final = 200
"""Most events that are told at once; of more the first."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Extent of what a follower sees.

    Attributes:
        most: rows of each list.
        words: all of them must be in a row's text.
        devices, leases, queue: the first row's number in each list.
    """

    most: int
    words: tuple[str, ...] = ()
    devices: int = 0
    leases: int = 0
    queue: int = 0


async def is_large(client: AsyncLeaseClient) -> bool:
    """Tell whether a pool has more rows than are told whole; one that is away has none."""
    try:
        pool = await client.pool()
    except LeaseError:
        return False
    rows = pool.active_leases + pool.active_cpu_leases + pool.waiting
    return rows > WHOLE or rows + await client.device_count() > WHOLE


class Window:
    """Part of a large pool that a follower sees.

    Args:
        client: the pool's client.
        view: what is read of all devices anyway.
        feed: the events, and the places of the devices.
        look: the extent.

    Attributes:
        shown: the rows.
        told: the events before all that is read here.
    """

    def __init__(self, client: AsyncLeaseClient, view: View, feed: Feed, look: Extent) -> None:
        self._client, self._view, self._feed, self._look = client, view, feed, look
        self._devices: list[DeviceEntry] = []
        self._tokens: list[str] = []
        self._leases = 0  # that match
        self._all = 0  # devices, whatever the words
        self._listed_until = 0.0  # on the monotonic clock
        self._position, self.told = feed.end, feed.newest(EVENTS)
        self.shown = LiveRows()

    async def read(self) -> None:
        """Read what is seen, and take in the changes; without the store, that it is away."""
        news = self._feed.since(self._position, EVENTS) or ()
        self._position = self._feed.end
        events = [cached.event for cached in news]
        try:
            pool = await self._client.pool()
            if time.monotonic() >= self._listed_until:
                await self._list()
            found = await self._found(pool)
        except LeaseError:
            self.shown.tell(events, {"broker": self._view.own_row()}, {})
            return
        self.shown.moment = SnapshotTime(self._feed.last_id, pool.now_ms / 1000, time.monotonic())
        known = self.shown.rows
        gone = {kind: [*(known[kind].keys() - rows.keys())] for kind, rows in found.items()}
        self.shown.tell(events, found, gone)

    async def _list(self) -> None:
        """Read which devices and leases match."""
        began = time.monotonic()
        devices = await self._client.device_list()
        self._all = len(devices)
        turns, words = Turns(), self._look.words
        self._devices = []
        for each in devices:
            if _holds(words, f"{each.host}:{each.number} {each.uuid} {each.state}"):
                self._devices.append(each)
            await turns.pause()
        leases = await self._client.lease_list(matches=self._matches if words else None)
        self._leases = sum(map(len, leases))
        begin, end = self._look.leases, self._look.leases + SPARE * self._look.most
        self._tokens = []
        for place, lease in enumerate(islice(merge(*leases), end)):
            if place >= begin:
                self._tokens.append(lease.token)
            await turns.pause()
        now = time.monotonic()
        self._listed_until = now + max(LISTED_S, REST * (now - began))

    def _matches(self, token: str, agent: str, devices: str, fence: str) -> bool:
        """Tell whether a lease holds every word; of its token only what all may see is compared."""
        places = self._feed.places
        at = (places.get(part.rpartition("=")[0]) for part in devices.split(","))
        where = " ".join(f"{place[0]}:{place[1]}" for place in at if place)
        text = f"{agent} {lease_json.masked(token, fence)} {where} {devices}"
        return _holds(self._look.words, text)

    async def _found(self, pool: PoolStatus) -> Rows:
        look, now_ms = self._look, pool.now_ms
        entries = self._devices[look.devices :][: look.most]
        waiters = await self._waiters(pool)
        leases = (await self._client.leases_of(self._tokens))[: look.most]
        held = {uuid for lease in leases for uuid, _ in lease.devices}
        uuids = {each.uuid for each in entries}
        devices = {d.uuid: d for d in await self._client.devices_of(sorted(uuids | held))}
        hosts = await self._client.hosts_of(sorted({each.host for each in entries}))
        names = {lease.token: lease_json.name_of(lease) for lease in leases}

        def named(token: str) -> str:
            return names.get(token) or lease_json.masked(token)

        turns = Turns()
        rows: Rows = {
            "broker": self._view.own_row(),
            "pool": {"pool": self._view.pool_row(pool) | {"large": self._large(len(waiters))}},
            "hosts": {host.host: dict(lease_json.host(host, now_ms)) for host in hosts},
            "devices": {},
            "leases": {},
            "queue": {},
            "teams": lease_json.teams(await self._client.teams() if pool.teams else ()),
            "minutes": self._view.minutes(),
        }
        for each in entries:
            if each.uuid in devices:
                rows["devices"][each.uuid] = device_json.row(
                    devices[each.uuid], named, pool.free_mb(devices[each.uuid])
                )
            await turns.pause()
        for lease in leases:
            rows["leases"][names[lease.token]] = dict(lease_json.known(lease, devices, now_ms))
            await turns.pause()
        for waiter in waiters[look.queue :][: look.most]:
            rows["queue"][lease_json.name_of(waiter)] = _waits(waiter, now_ms)
            await turns.pause()
        return rows

    async def _waiters(self, pool: PoolStatus) -> list[WaiterStatus]:
        found = await self._client.queue() if pool.waiting else ()
        words = self._look.words
        return [
            each
            for each in found
            if _holds(words, f"{each.agent} {lease_json.name_of(each)} {each.queue_id}")
        ]

    def _large(self, waiters: int) -> Row:
        """Return the figures of the whole pool, and how many rows match."""
        matches = {
            "devices": len(self._devices),
            "leases": self._leases,
            "queue": waiters,
        }
        return {"matches": matches, "devices": self._all, **self._view.sums.told()}

    def trends(self) -> dict[str, Any]:
        """Return the last minutes of the devices that are seen."""
        return self._view.trends.told(self.shown.rows["devices"])


def _holds(words: Sequence[str], text: str) -> bool:
    return all(word in text.lower() for word in words)


def _waits(waiter: WaiterStatus, now_ms: int) -> Row:
    """Return a waiter's row; the reasons against each device are told by its explanation."""
    code = waiter.state if waiter.state == "offered" else "behind" if waiter.place else "next"
    says = STANDING[code]
    if waiter.capped:
        code, says = (
            "agent_cap",
            party_says("agent_cap", waiter.capped_by) or CODES["agent_cap"].says,
        )
    elif waiter.place:
        says = f"{waiter.place} ahead in its queue"
    return lease_json.waiter(waiter, now_ms) | {"code": code, "why": says, "devices_say": {}}
