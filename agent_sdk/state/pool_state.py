"""State of the whole pool at about one moment, and the standing of a request in it.

Read with plain pipelined commands: one part may be a few milliseconds older than another.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_sdk.errors import CODES, HostUnknown
from agent_sdk.protocol.refusals import party_says, team_limit_says
from agent_sdk.state import caps as rules
from agent_sdk.state import lists, placement, queue, reservations, snapshot
from agent_sdk.state.caps import Caps, Head, reservations_of
from agent_sdk.state.outlook import Outlook, Outlooks

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.placement import PlacementRequest
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import HostStatus, LeaseStatus, PoolStatus
    from agent_sdk.teams.policy import TeamPolicy
    from agent_sdk.teams.sums import PartySums

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


_HOPES: Final = ("fits", "no_capacity", "draining", "agent_cap", "team_limit", "never_fits")
"""Codes of a request on each model by which it could be served, the best first."""

BY_CAPS: Final = frozenset({"agent_cap", "limit", "team_limit"})
"""Codes of a request that a cap holds back."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """State of a pool, for people.

    Attributes:
        hosts: by name.
        devices: by uuid, in the order of host and index.
        leases: by token, oldest first.
        waiters: by token, in the order of the queue.
        sums: agents by name, `key NAME`, `team NAME` -> what counts against their caps.
        policies: team -> its policy; empty: no team has one.
        caps: the same as rules.
        heads: the heads of all queues in their order, where teams have policies.
    """

    pool: PoolStatus
    hosts: dict[str, HostStatus]
    devices: dict[str, DeviceStatus]
    leases: dict[str, LeaseStatus]
    waiters: dict[str, WaiterStatus]
    sums: dict[str, PartySums]
    policies: dict[str, TeamPolicy] = field(default_factory=dict)
    caps: Caps = field(init=False, repr=False, compare=False)
    heads: tuple[Head, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        waiting = self.waiters.values()
        models = {uuid: device.model for uuid, device in self.devices.items()}
        reserved = reservations_of(waiting, models)
        caps = Caps(self.pool, self.sums, self.policies, reserved, frozenset(models.values()))
        object.__setattr__(self, "caps", caps)
        ordered = rules.heads(waiting, caps) if self.policies else ()
        object.__setattr__(self, "heads", tuple(ordered))

    @property
    def held(self) -> dict[str, tuple[int, int]]:
        """MiB and leases of each agent that count against its caps."""
        return {name: (x.mb, x.leases) for name, x in self.sums.items() if " " not in name}

    def free_mb(self, device: DeviceStatus) -> int:
        """Return the MiB of a device for the next request, under the present policy."""
        return self.pool.free_mb(device)


def read(keys: Keys) -> Generator[Read, Answer, PoolState]:
    """Read the whole pool."""
    pool = yield from snapshot.pool(keys)
    hosts = yield from snapshot.hosts(keys)
    devices = yield from snapshot.devices(keys)
    records = yield from snapshot.records(keys, ("active", *queue.WAITS))
    leases, waiters = yield from _parted(keys, records)
    policies, sums = yield from rules.parties(keys)
    return PoolState(
        pool=pool,
        hosts={host.host: host for host in hosts},
        devices={device.uuid: device for device in devices},
        leases=_in_order(leases),
        waiters=_by_rank(waiters),
        sums=sums,
        policies=policies,
    )


def read_queue(keys: Keys) -> Generator[Read, Answer, PoolState]:
    """Read the whole pool but its leases: what tells how its waiters stand."""
    pool = yield from snapshot.pool(keys)
    hosts = yield from snapshot.hosts(keys)
    devices = yield from snapshot.devices(keys)
    waiters = yield from queue.waiters(keys)
    policies, sums = yield from rules.parties(keys)
    return PoolState(
        pool=pool,
        hosts={host.host: host for host in hosts},
        devices={device.uuid: device for device in devices},
        leases={},
        waiters={waiter.token: waiter for waiter in waiters},
        sums=sums,
        policies=policies,
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
    policies, sums = yield from rules.parties(keys)
    kept = (lease for token, lease in scene.leases.items() if token not in tokens)
    found = {device.uuid: device for device in devices}
    return replace(
        scene,
        pool=pool,
        devices={u: found.get(u, d) for u, d in scene.devices.items()},
        leases=_in_order((*kept, *leases)),
        waiters=_by_rank(waiters),
        sums=sums,
        policies=policies,
    )


def _parted(
    keys: Keys, records: dict[str, dict[str, str]]
) -> Generator[Read, Answer, tuple[list[LeaseStatus], list[WaiterStatus]]]:
    waits = {token: row for token, row in records.items() if row["state"] in queue.WAITS}
    waiters = yield from queue.placed(keys, waits)
    holds = ((token, row) for token, row in records.items() if token not in waits)
    return list(snapshot.legible(snapshot.lease_status, holds)), waiters


def _in_order(leases: Iterable[LeaseStatus]) -> dict[str, LeaseStatus]:
    return {lease.token: lease for lease in sorted(leases, key=lambda lease: lease.fence)}


def _by_rank(waiters: Iterable[WaiterStatus]) -> dict[str, WaiterStatus]:
    return {w.token: w for w in sorted(waiters, key=lambda w: (w.rank, w.token))}


def look(wish: PlacementRequest, scene: PoolState) -> Outlook:
    """Return the outlook of one request; `Outlooks` has that of many."""
    devices = tuple(scene.devices.values())
    code, ever_mb = placement.never(wish, devices, scene.pool)
    return Outlook(code, placement.least_mb(wish, devices, scene.pool), ever_mb)


def why(
    wish: PlacementRequest, scene: PoolState, seen: Outlook | None = None, token: str | None = None
) -> str:
    """Return the strongest reason that holds a request back, as acquire would tell it.

    seen: its outlook, if known already; token: its token, if it waits.
    """
    pool, caps = scene.pool, scene.caps
    if caps.by_model(wish) and caps.models:
        return _why_on_each(wish, scene, token)
    room_mb = caps.room(wish, token).mb
    never_fits, least_mb, ever_mb = seen or look(wish, scene)
    asked, asks_mb = scene.hosts.get(wish.host), wish.memory_mb * wish.devices
    most_mb, cap_mb = caps.most_mb(wish.team, wish.model), pool.max_memory_per_agent_mb
    checks = (
        ("safe_mode", pool.safe_mode),
        ("closed", pool.now_ms < pool.closed_until_ms),
        ("limit", caps.full(wish) is not None),
        (never_fits or "", never_fits is not None),
        ("team_limit", max(ever_mb, asks_mb) > most_mb and most_mb < cap_mb),
        ("agent_cap", max(ever_mb, asks_mb) > cap_mb),
        ("agent_cap", max(asks_mb, least_mb or 0) > room_mb),
        ("fits", least_mb is not None),
        ("draining", asked is not None and asked.drained),
        ("no_capacity", True),
    )
    return next(code for code, holds in checks if holds)


def _never(wish: PlacementRequest, scene: PoolState) -> bool:
    """Tell whether nothing that is registered could ever be this request's."""
    never_fits, _, ever_mb = look(wish, scene)
    most_mb = min(scene.caps.most_mb(wish.team, wish.model), scene.pool.max_memory_per_agent_mb)
    return never_fits is not None or max(ever_mb, wish.memory_mb * wish.devices) > most_mb


def _why_on_each(wish: PlacementRequest, scene: PoolState, token: str | None) -> str:
    """Return the same for a request that may be of any model: the best of all models."""
    each = [replace(wish, model=model) for model in sorted(scene.caps.models)]
    codes = [why(one, scene, None, token) for one in each]
    best = min(codes, key=lambda code: _HOPES.index(code) if code in _HOPES else len(_HOPES))
    if best != "agent_cap" or all(_never(one, scene) for one in each):
        return best
    # A cap holds it back alone where it does so on each model of which a device is large enough
    devices = [d for d in scene.devices.values() if d.total_mb - d.system_mb >= wish.memory_mb]
    large = {device.model for device in devices}
    for one in each:
        least_mb = placement.least_mb(one, scene.devices.values(), scene.pool)
        needs_mb = max(one.memory_mb * one.devices, least_mb or 0)
        if one.model in large and needs_mb <= scene.caps.room(one, token).mb:
            asked = scene.hosts.get(wish.host)
            return "draining" if asked is not None and asked.drained else "no_capacity"
    return best


def why_waits(waiter: WaiterStatus, scene: PoolState, seen: Outlook | None = None) -> str:
    """Return the reason that holds a waiter back: a word of STANDING or of `errors.CODES`."""
    if waiter.state == "offered":
        return "offered"
    code = why(waiter.wish, scene, seen, waiter.token)
    if code not in {"fits", "no_capacity"}:
        return code
    # There is no room, or was none at the last check. Only a party with leases is capped: without
    # one, the waiter is about to get its grant.
    party = waiter.agent if waiter.capped_by == "agent" else waiter.capped_by
    if waiter.capped and scene.caps.held(party).leases:
        return "agent_cap"
    return "behind" if waiter.place else "next"


def limit_says(code: str, wish: PlacementRequest, scene: PoolState, party: str = "") -> str:
    """Return the sentence of a code of caps, with the party that is at its cap.

    party: the one that a waiter is capped by, if known.
    """
    if code == "team_limit":
        return team_limit_says(_limit_word(wish, scene), wish.team)
    if not party:
        party = scene.caps.full(wish) or "" if code == "limit" else scene.caps.room(wish).party
    return party_says(code, party) or CODES[code].says


def _limit_word(wish: PlacementRequest, scene: PoolState) -> str:
    """Return the limit that is in its way; on each model where it names none, the largest."""
    caps = scene.caps
    each = [replace(wish, model=model) for model in caps.models if caps.by_model(wish)]
    over = [caps.most_mb(x.team, x.model) for x in each if why(x, scene) == "team_limit"]
    return f"most_mb@{wish.model}={max(over):.0f}" if over else caps.limit_word(wish)


def reasons(wish: PlacementRequest, scene: PoolState, token: str | None) -> dict[str, str]:
    """Return the reason against each device now: uuid -> a word of `placement.REASONS`."""
    found = {
        uuid: placement.reason(wish, device, scene.pool, token)
        for uuid, device in scene.devices.items()
    }
    if scene.caps.of_team(wish.team).models:
        room = scene.caps.room_by_model(wish, token)
        for uuid, word in found.items():
            if word == "fits" and room(scene.devices[uuid].model) < wish.memory_mb:
                found[uuid] = "no_quota"
    return found


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
    code: str,
    wish: PlacementRequest,
    scene: PoolState,
    counts: dict[str, int],
    ahead_count: int,
    waiter: WaiterStatus | None = None,
) -> str:
    """Return a sentence: the main reason, and the states of the devices that would do."""
    says = STANDING.get(code) or CODES[code].says
    if code in BY_CAPS:
        says = limit_says(code, wish, scene, waiter.capped_by if waiter else "")
    if waiter and code == "next":
        says = rules.behind(waiter, scene.heads) or says
    if code == "host_unknown":
        says = str(unknown_host(wish.host, scene))
    if code == "behind":
        ahead = "one request is" if ahead_count == 1 else f"{ahead_count} requests are"
        says = f"{ahead} ahead in its queue"
    if code not in BY_DEVICES:
        return says
    parts = [f"{count} {word}" for word, count in counts.items()]
    return f"{says} (devices: {', '.join(parts)})" if parts else says


def preempting_for(waiter: WaiterStatus, scene: PoolState) -> str:
    """Return what is preempted for a waiter as the end of a sentence; empty: nothing is."""
    if waiter.preempt_at_ms is None:
        return ""
    left_s = max(0, waiter.preempt_at_ms - scene.pool.now_ms) // 1000
    count = len(waiter.preempts)
    return f"; preempting {count} {'lease' if count == 1 else 'leases'} for it in {left_s} s"


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
        wish = waiter.wish
        anyone = wish.of_anyone
        code = why_waits(waiter, scene, seen(anyone))
        counts = counts_of(anyone, token if waiter.reserved else None) if code in BY_DEVICES else {}
        says = (
            unknown(anyone.host)
            if code == "host_unknown"
            else summary(code, wish, scene, counts, waiter.place or 0, waiter)
        )
        says += preempting_for(waiter, scene) + reserved_for(waiter, scene)
        told[token] = QueueStanding(code, says, counts)
    return told
