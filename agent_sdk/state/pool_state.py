"""State of the whole pool at about one moment, and the standing of a request in it.

Read with plain pipelined commands: one part may be a few milliseconds older than another.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_sdk.errors import CODES, HostUnknown
from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state import lists, placement, queue, reservations, snapshot
from agent_sdk.state.outlook import Outlook, Outlooks
from agent_sdk.state.placement import PlacementRequest
from agent_sdk.state.readings import rows

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    from agent_sdk.keys import Keys
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import HostStatus, LeaseStatus, PoolStatus

STANDING: Final = {
    "active": "it is granted: nothing to wait for",
    "offered": "devices are reserved for it: it gets them with its next call, within 10 s",
    "next": "it is next: it is served as soon as enough is free",
    "behind": "other requests of its queue are ahead of it",
    "fits": "it fits now: ask",
}
"""Standing of a request without a code of `errors.CODES`."""

BY_DEVICES: Final = frozenset({"next", "behind", "no_capacity"})
"""Codes of a request that only the use of the devices holds back."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """State of a pool, for people.

    Attributes:
        hosts: by name.
        devices: by uuid, in the order of host and index.
        leases: by token, oldest first.
        waiters: by token, in the order of the queue.
        held: agent -> MiB and leases that count against its caps.
        reserved: agent -> MiB of the reservations of its waiters, by token.
    """

    pool: PoolStatus
    hosts: dict[str, HostStatus]
    devices: dict[str, DeviceStatus]
    leases: dict[str, LeaseStatus]
    waiters: dict[str, WaiterStatus]
    held: dict[str, tuple[int, int]]
    reserved: dict[str, dict[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        reserved: dict[str, dict[str, int]] = {}
        for x in self.waiters.values():
            if x.reservation:
                reserved.setdefault(x.agent, {})[x.token] = x.reservation.memory_mb
        object.__setattr__(self, "reserved", reserved)

    def room_mb(self, agent: str, token: str | None = None) -> int:
        """Return the MiB that an agent's caps leave beside its leases and reservations.

        token: one of its waiters, with a reservation that is not in its way.
        """
        held_mb, leases = self.held.get(agent, (0, 0))
        if leases >= self.pool.max_leases_per_agent:
            return 0
        reserved = self.reserved.get(agent, {})
        reserved_mb = sum(reserved.values()) - reserved.get(token or "", 0)
        return self.pool.max_memory_per_agent_mb - held_mb - reserved_mb

    def free_mb(self, device: DeviceStatus) -> int:
        """Return the MiB of a device for the next request, under the present policy."""
        pool = self.pool
        shut = pool.safe_mode or pool.now_ms < pool.closed_until_ms
        taken = device.leases > 0 and not pool.allow_fractional_shares
        return 0 if shut or taken else device.free_mb


def read(keys: Keys) -> Generator[Read, Answer, PoolState]:
    """Read the whole pool."""
    pool = yield from snapshot.pool(keys)
    hosts = yield from snapshot.hosts(keys)
    devices = yield from snapshot.devices(keys)
    records = yield from snapshot.records(keys, ("active", *queue.WAITS))
    leases, waiters = yield from _parted(keys, records)
    held = yield from _held(keys)
    return PoolState(
        pool=pool,
        hosts={host.host: host for host in hosts},
        devices={device.uuid: device for device in devices},
        leases=_in_order(leases),
        waiters=_by_rank(waiters),
        held=held,
    )


def read_queue(keys: Keys) -> Generator[Read, Answer, PoolState]:
    """Read the whole pool but its leases: what tells how its waiters stand."""
    pool = yield from snapshot.pool(keys)
    hosts = yield from snapshot.hosts(keys)
    devices = yield from snapshot.devices(keys)
    waiters = yield from queue.waiters(keys)
    held = yield from _held(keys)
    return PoolState(
        pool=pool,
        hosts={host.host: host for host in hosts},
        devices={device.uuid: device for device in devices},
        leases={},
        waiters={waiter.token: waiter for waiter in waiters},
        held=held,
    )


def with_leases_on(
    keys: Keys, scene: PoolState, uuids: Collection[str]
) -> Generator[Read, Answer, PoolState]:
    """Read the leases on these devices, and return the scene with them."""
    tokens = yield from lists.holding(keys, sorted(uuids))
    leases = yield from snapshot.leases_of(keys, tokens)
    return replace(scene, leases=_in_order(leases))


def read_again(
    keys: Keys, scene: PoolState, tokens: Collection[str], uuids: Collection[str]
) -> Generator[Read, Answer, PoolState]:
    """Read these leases and waiters, these devices and the whole queue of a scene anew."""
    pool = yield from snapshot.pool(keys)
    devices = yield from snapshot.devices_of(keys, sorted(uuids))
    asked = sorted({*tokens, *scene.waiters})
    records = yield from snapshot.records_of(keys, asked, ("active", *queue.WAITS))
    leases, waiters = yield from _parted(keys, records)
    held = yield from _held(keys)
    kept = (lease for token, lease in scene.leases.items() if token not in tokens)
    found = {device.uuid: device for device in devices}
    return replace(
        scene,
        pool=pool,
        devices={u: found.get(u, d) for u, d in scene.devices.items()},
        leases=_in_order((*kept, *leases)),
        waiters=_by_rank(waiters),
        held=held,
    )


def _parted(
    keys: Keys, records: dict[str, dict[str, str]]
) -> Generator[Read, Answer, tuple[list[LeaseStatus], list[WaiterStatus]]]:
    waits = {token: row for token, row in records.items() if row["state"] in queue.WAITS}
    waiters = yield from queue.placed(keys, waits)
    holds = ((token, row) for token, row in records.items() if token not in waits)
    return list(snapshot.legible(snapshot.lease_status, holds)), waiters


def _held(keys: Keys) -> Generator[Read, Answer, dict[str, tuple[int, int]]]:
    answer = yield Read((("HGETALL", keys.agents),))
    return _sums(rows(answer)[0])


@of_known_form
def _sums(row: dict[str, str]) -> dict[str, tuple[int, int]]:
    agents = {name.partition("#")[0] for name in row}
    return {a: (int(row.get(a, 0)), int(row.get(f"{a}#leases", 0))) for a in agents}


def _in_order(leases: Iterable[LeaseStatus]) -> dict[str, LeaseStatus]:
    return {lease.token: lease for lease in sorted(leases, key=lambda lease: lease.fence)}


def _by_rank(waiters: Iterable[WaiterStatus]) -> dict[str, WaiterStatus]:
    return {w.token: w for w in sorted(waiters, key=lambda w: (w.rank, w.token))}


def wish_of(waiter: WaiterStatus) -> PlacementRequest:
    """Return a waiter's request, as placement sees it."""
    return PlacementRequest(
        agent=waiter.agent,
        memory_mb=waiter.memory_mb,
        devices=waiter.devices,
        exclusive=waiter.exclusive,
        host=waiter.asked_host,
        model=waiter.model,
    )


def look(wish: PlacementRequest, scene: PoolState) -> Outlook:
    """Return the outlook of one request; `Outlooks` has that of many."""
    devices = tuple(scene.devices.values())
    return Outlook(
        placement.never(wish, devices, scene.pool), placement.least_mb(wish, devices, scene.pool)
    )


def why(
    wish: PlacementRequest, scene: PoolState, seen: Outlook | None = None, token: str | None = None
) -> str:
    """Return the strongest reason that holds a request back, as acquire would tell it.

    seen: its outlook, if known already; token: its token, if it waits.
    """
    pool = scene.pool
    room_mb = scene.room_mb(wish.agent, token)
    never_fits, least_mb = seen or look(wish, scene)
    asked = scene.hosts.get(wish.host)
    checks = (
        ("safe_mode", pool.safe_mode),
        ("closed", pool.now_ms < pool.closed_until_ms),
        ("limit", scene.held.get(wish.agent, (0, 0))[1] >= pool.max_leases_per_agent),
        (never_fits or "", never_fits is not None),
        ("agent_cap", max(wish.memory_mb * wish.devices, least_mb or 0) > room_mb),
        ("fits", least_mb is not None),
        ("draining", asked is not None and asked.drained),
        ("no_capacity", True),
    )
    return next(code for code, holds in checks if holds)


def why_waits(waiter: WaiterStatus, scene: PoolState, seen: Outlook | None = None) -> str:
    """Return the reason that holds a waiter back: a word of STANDING or of `errors.CODES`."""
    if waiter.state == "offered":
        return "offered"
    code = why(wish_of(waiter), scene, seen, waiter.token)
    if code not in {"fits", "no_capacity"}:
        return code
    # There is no room, or was none at the last check. Only an agent with leases is capped: without
    # one, the waiter is about to get its grant.
    if waiter.capped and scene.held.get(waiter.agent, (0, 0))[1]:
        return "agent_cap"
    return "behind" if waiter.place else "next"


def reasons(wish: PlacementRequest, scene: PoolState, token: str | None) -> dict[str, str]:
    """Return the reason against each device now: uuid -> a word of `placement.REASONS`."""
    return {
        uuid: placement.reason(wish, device, scene.pool, token)
        for uuid, device in scene.devices.items()
    }


def counted(found: Iterable[str]) -> dict[str, int]:
    """Count the reasons of the devices that would do: word -> how many, the most frequent first."""
    counts: dict[str, int] = {}
    for word in found:
        if word not in {"other_host", "other_model", "fits"}:
            counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda x: -x[1]))


def unknown_host(host: str, scene: PoolState) -> HostUnknown:
    """Return the refusal of a host without devices, with the nearest known host."""
    return HostUnknown.among(host, {device.host for device in scene.devices.values()})


def summary(
    code: str, wish: PlacementRequest, scene: PoolState, counts: dict[str, int], ahead_count: int
) -> str:
    """Return a sentence: the main reason, and the states of the devices that would do."""
    says = STANDING.get(code) or CODES[code].says
    if code == "host_unknown":
        says = str(unknown_host(wish.host, scene))
    if code == "behind":
        ahead = "one request is" if ahead_count == 1 else f"{ahead_count} requests are"
        says = f"{ahead} ahead in its queue"
    if code not in BY_DEVICES:
        return says
    parts = [f"{count} {word}" for word, count in counts.items()]
    return f"{says} (devices: {', '.join(parts)})" if parts else says


def reserved_for(waiter: WaiterStatus, scene: PoolState) -> str:
    """Return a waiter's reservation as the end of a sentence; empty: it has none."""
    if not waiter.reservation:
        return ""
    gpus = [scene.devices[uuid] for uuid in waiter.reservation.devices if uuid in scene.devices]
    places = ", ".join(f"{d.host}:{d.index}" for d in gpus)
    return f"; {places} {reservations.says(waiter.reservation, scene.pool.now_ms)}"


class QueueStanding(NamedTuple):
    """Standing of a waiter; `devices` counts the reasons against them, see `counted`."""

    code: str
    says: str
    devices: dict[str, int]


def standings(scene: PoolState) -> dict[str, QueueStanding]:
    """Return the standing of every waiter, by token, in the queue's order.

    Equal requests share one look at the devices, and all share the devices' order by size.
    """
    outlooks = Outlooks(tuple(scene.devices.values()), scene.pool)
    seen, counts_of = cache(outlooks.of), cache(outlooks.counts)

    @cache
    def unknown(host: str) -> str:
        return str(unknown_host(host, scene))

    told: dict[str, QueueStanding] = {}
    for token, waiter in scene.waiters.items():
        anyone = replace(wish_of(waiter), agent="")
        code = why_waits(waiter, scene, seen(anyone))
        counts = counts_of(anyone, token if waiter.reserved else None) if code in BY_DEVICES else {}
        says = (
            unknown(anyone.host)
            if code == "host_unknown"
            else summary(code, anyone, scene, counts, waiter.place or 0)
        )
        says += reserved_for(waiter, scene)
        told[token] = QueueStanding(code, says, counts)
    return told
