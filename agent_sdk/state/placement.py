"""Placement as a reader sees it: the rules of `lua/lib/placement.lua` over a snapshot.

Pure functions. They explain; only a script decides.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.protocol.messages import ANY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent_sdk.protocol.messages import Request
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import LeaseStatus, PoolStatus

MIB_PER_GIB: Final = 1024

REASONS: Final = {
    "fits": "it fits now",
    "other_host": "it is of another host than the one asked for",
    "other_model": "it is of another model than the one asked for",
    "part": "it is a part of a GPU: a program can use one such part, and no GPU beside it",
    "quarantined": "its host does not lend it until it is known to be sound",
    "dirty": "processes of a lease that is over are still on it",
    "mig": "it is divided: its parts are leased instead",
    "prohibited": "its compute mode lets no process compute on it",
    "down": "its reporter says that something is wrong with it, or is silent",
    "drained": "an operator drained it",
    "too_small": "it could never hold that much",
    "reserved": "it is reserved for a request that has waited long",
    "exclusive": "a lease has the whole device",
    "not_idle": "a whole device is asked for, and leases are on it",
    "one_lease": "it takes one lease at a time, and has one",
    "withheld": "a lease on it expired, and its memory is not known to be free yet",
    "used_by_others": "processes without a lease use its memory",
    "full": "leases hold its memory",
    "no_quota": "its team may hold no more of that model now",
}
"""Reasons for which a device does not fit now: a closed set."""

STATES: Final = ("quarantined", "dirty", "mig", "prohibited")
"""States of a device that are a reason by themselves."""

ELSEWHERE: Final = frozenset({
    "other_host", "other_model", "part", "quarantined", "dirty", "mig", "prohibited", "down",
    "drained", "too_small",
})  # fmt: skip
"""Reasons that no end of a lease changes."""


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """Request as far as placement and caps care. `*` = any host, any model."""

    agent: str
    memory_mb: int
    devices: int
    exclusive: bool
    host: str
    model: str
    owner: str = ""
    team: str = DEFAULT_TEAM

    @classmethod
    def of(cls, request: Request, pool: PoolStatus) -> PlacementRequest:
        """Return what placement and caps care for of a request."""
        return cls(
            agent=request.agent,
            memory_mb=request.memory_mb or pool.default_memory_mb,
            devices=request.devices,
            exclusive=bool(request.exclusive),
            host=request.host,
            model=request.model,
            owner=request.owner,
            team=request.team or DEFAULT_TEAM,
        )

    @property
    def queue_id(self) -> str:
        """Queue that the request would wait in; see `lua/lib/queue.lua`."""
        size = max(0, self.memory_mb - 1).bit_length()
        size_class = f"m{size}"
        if self.exclusive or self.devices > 1:
            size_class = f"x{100 * (self.devices - 1).bit_length() + size}"
        of_team = f"/{self.team}" if self.team != DEFAULT_TEAM else ""
        return f"{self.host}/{self.model}/{size_class}{of_team}"

    @property
    def of_anyone(self) -> PlacementRequest:
        """The same request of any agent, key and team."""
        return replace(self, agent="", owner="", team=DEFAULT_TEAM)


@dataclass(frozen=True, slots=True)
class RequestChange:
    """Change of the request that would fit now.

    Attributes:
        change: options of acquire, by name.
        says: the same as a sentence.
    """

    change: dict[str, int | str | bool]
    says: str


@dataclass(frozen=True, slots=True)
class End:
    """End of a lease, ms on the pool's clock.

    Attributes:
        memory_mb: MiB that it then gives back on the device.
        basis: expiry: unless it is renewed; max_hold, revoked, preempted: at the latest.
    """

    token: str
    agent: str
    memory_mb: int
    ends_at_ms: int
    basis: str


def whole(wish: PlacementRequest, pool: PoolStatus) -> bool:
    """Return whether the request needs whole devices."""
    return wish.exclusive or wish.devices > 1 or not pool.allow_fractional_shares


def reason(
    wish: PlacementRequest, device: DeviceStatus, pool: PoolStatus, token: str | None = None
) -> str:
    """Return the reason against this device now, a word of REASONS. `token`: that of a waiter."""
    if away := elsewhere(wish, device):
        return away
    if device.total_mb - device.system_mb < wish.memory_mb:
        return "too_small"
    if word := obstacle(wish, device, pool, token):
        return word
    free = device.left_mb
    checks = (
        ("fits", free > 0 and free >= wish.memory_mb),
        ("withheld", device.withheld_mb > 0 and free + device.withheld_mb >= wish.memory_mb),
        ("used_by_others", device.unleased_mb > 0 and free + device.unleased_mb >= wish.memory_mb),
        ("full", True),
    )
    return next(word for word, holds in checks if holds)


def elsewhere(wish: PlacementRequest, device: DeviceStatus) -> str:
    """Return the reason for which a device is not asked for at all; empty: it is."""
    if wish.host not in {ANY, device.host}:
        return "other_host"
    if wish.model not in {ANY, device.model}:
        return "other_model"
    return "part" if wish.devices > 1 and device.alone else ""


def obstacle(
    wish: PlacementRequest, device: DeviceStatus, pool: PoolStatus, token: str | None = None
) -> str:
    """Return the reason against a device that is large enough, whatever the size; empty: none."""
    checks = (
        *((state, device.state == state) for state in STATES),
        ("down", device.state != "ok"),
        ("drained", device.drained),
        ("reserved", device.reserved_for not in {"", token}),
        ("exclusive", bool(device.exclusive)),
        ("not_idle", whole(wish, pool) and device.leases > 0),
        ("withheld", whole(wish, pool) and device.withheld_mb > 0),
        ("one_lease", device.one_lease and device.leases > 0),
        ("withheld", device.one_lease_held),
        ("used_by_others", whole(wish, pool) and device.unleased_mb > device.idle_unleased_mb),
    )
    return next((word for word, holds in checks if holds), "")


def placed(
    wish: PlacementRequest, devices: Iterable[DeviceStatus], pool: PoolStatus, room_mb: float
) -> list[DeviceStatus] | None:
    """Return the devices that a new request would get, or None.

    `room_mb`: the room under its caps.
    """
    found = _choices(wish, devices, pool)
    return next((best for cost_mb, best in found if cost_mb <= room_mb), None)


def least_mb(
    wish: PlacementRequest, devices: Iterable[DeviceStatus], pool: PoolStatus
) -> int | None:
    """Return the least room under its caps that lets it be `placed`; None: no room does."""
    return min((cost_mb for cost_mb, _ in _choices(wish, devices, pool)), default=None)


def _choices(
    wish: PlacementRequest, devices: Iterable[DeviceStatus], pool: PoolStatus
) -> Iterator[tuple[int, list[DeviceStatus]]]:
    """Yield its candidates, best first, with the MiB that count against its caps."""
    fit = [device for device in devices if reason(wish, device, pool) == "fits"]
    if not whole(wish, pool):
        if fit:
            yield wish.memory_mb, [max(fit, key=lambda d: d.left_mb)]
        return
    for group in _groups(fit).values():
        best = sorted(group, key=lambda d: d.left_mb)[: wish.devices]
        if len(best) == wish.devices:
            yield sum(d.left_mb for d in best), best


def never(
    wish: PlacementRequest, devices: Sequence[DeviceStatus], pool: PoolStatus
) -> tuple[str | None, int]:
    """Return the code for a request that no registered device could ever hold; else None.

    Then the least MiB that it could ever count against caps.
    """
    if wish.model != ANY and wish.model not in {d.model for d in devices}:
        return "model_unknown", 0
    if wish.host != ANY and wish.host not in {d.host for d in devices}:
        return "host_unknown", 0
    large = [
        d
        for d in devices
        if wish.host in {ANY, d.host}
        and wish.model in {ANY, d.model}
        and not (wish.devices > 1 and d.alone)
        and d.total_mb - d.system_mb >= wish.memory_mb
    ]
    groups = [group for group in _groups(large).values() if len(group) >= wish.devices]
    if not groups:
        return "never_fits", 0
    if not whole(wish, pool):
        return None, wish.memory_mb
    return None, min(sum(sorted(map(whole_mb, group))[: wish.devices]) for group in groups)


def whole_mb(device: DeviceStatus) -> int:
    """Return the MiB of a whole device that count against a cap: not what a driver uses."""
    idle = device.unleased_mb <= device.idle_unleased_mb
    return device.total_mb - device.system_mb - (device.unleased_mb if idle else 0)


def ready_at(
    wish: PlacementRequest,
    devices: Iterable[DeviceStatus],
    pool: PoolStatus,
    ends: dict[str, list[End]],
    token: str | None = None,
) -> tuple[int, End] | None:
    """Return the time, ms, of enough free memory without new requests, and the decisive lease.

    ends: device id -> the known ends of the leases on it; token: that of a waiter.
    """
    found: list[tuple[int, End, DeviceStatus]] = []
    for device in devices:
        after = _device_ready(wish, device, pool, ends.get(device.uuid, []), token)
        if after is not None:
            found.append((after.ends_at_ms, after, device))
    if not whole(wish, pool):
        return min(((at, end) for at, end, _ in found), default=None, key=lambda x: x[0])
    times: dict[tuple[str, str], list[tuple[int, End]]] = defaultdict(list)
    for at, end, device in found:
        times[device.host, device.model].append((at, end))
    last = [
        sorted(group, key=lambda x: x[0])[wish.devices - 1]
        for group in times.values()
        if len(group) >= wish.devices
    ]
    return min(last, default=None, key=lambda x: x[0])


NOW: Final = End("", "", 0, 0, "now")
"""End for a device that is free already."""


def _device_ready(
    wish: PlacementRequest,
    device: DeviceStatus,
    pool: PoolStatus,
    ends: list[End],
    token: str | None,
) -> End | None:
    """Return the end after which the device fits; None: no known one."""
    why = reason(wish, device, pool, token)
    if why == "fits":
        return NOW
    if why in ELSEWHERE or why in {"used_by_others", "reserved", "withheld"}:
        return None
    ordered = sorted(ends, key=lambda end: end.ends_at_ms)
    if whole(wish, pool) or device.exclusive or device.one_lease:
        # Processes without a lease stay: they may leave too little even on an empty device.
        left = device.left_mb + sum(end.memory_mb for end in ordered)
        stays = whole(wish, pool) and device.unleased_mb > device.idle_unleased_mb
        enough = len(ordered) == device.leases and left >= max(1, wish.memory_mb) and not stays
        return ordered[-1] if enough else None
    free = device.left_mb
    for end in ordered:
        free += end.memory_mb
        if free >= wish.memory_mb:
            return end
    return None


def changes(
    wish: PlacementRequest,
    devices: Sequence[DeviceStatus],
    pool: PoolStatus,
    room: Callable[[str], float],
) -> Iterator[tuple[RequestChange, PlacementRequest]]:
    """Return the changes by which the request would fit now; the least loss first.

    `room`: the room under its caps, by the model of the devices.
    """
    by_host: dict[str, list[DeviceStatus]] = defaultdict(list)
    for device in devices:
        by_host[device.host].append(device)

    def tried(
        change: dict[str, int | str | bool], other: PlacementRequest, what: str
    ) -> Iterator[tuple[RequestChange, PlacementRequest]]:
        # Only the host's own devices: reading all of them for each host would be quadratic.
        there = devices if other.host == ANY else by_host[other.host]
        if got := _within(other, there, pool, room):
            where = got[0].host + (f" GPU {got[0].index}" if len(got) == 1 else "")
            yield RequestChange(change, f"{what} fits now on {where}"), other

    for host in sorted(by_host.keys() - {wish.host}) if wish.host != ANY else ():
        yield from tried({"host": host}, replace(wish, host=host), "the same")
    for model in sorted({d.model for d in devices} - {wish.model}) if wish.model != ANY else ():
        other = replace(wish, model=model)
        yield from tried({"model": model}, other, f"the same on model {model}")
    if wish.exclusive and wish.devices == 1:
        other = replace(wish, exclusive=False)
        yield from tried({"exclusive": False}, other, f"{size(wish.memory_mb)} that is shared")
    for fewer in range(wish.devices - 1, 0, -1):
        found = list(tried({"devices": fewer}, replace(wish, devices=fewer), f"{fewer} instead"))
        yield from found
        if found:
            break
    yield from _smaller(wish, devices, pool, room)


def _within(
    wish: PlacementRequest,
    devices: Sequence[DeviceStatus],
    pool: PoolStatus,
    room: Callable[[str], float],
) -> list[DeviceStatus] | None:
    """Return the devices that it would get, of a model of which its caps leave it room."""
    rooms = {model: room(model) for model in sorted({d.model for d in devices})}
    if len(set(rooms.values())) <= 1:
        return placed(wish, devices, pool, next(iter(rooms.values()), 0))
    each = (
        placed(wish, [d for d in devices if d.model == model], pool, mb)
        for model, mb in rooms.items()
    )
    return next(filter(None, each), None)


def _smaller(
    wish: PlacementRequest,
    devices: Sequence[DeviceStatus],
    pool: PoolStatus,
    room: Callable[[str], float],
) -> Iterator[tuple[RequestChange, PlacementRequest]]:
    """Return the most memory that fits now where it was asked, and on any host if that is more."""
    most = 0
    for host in (wish.host, ANY) if wish.host != ANY else (ANY,):
        least = replace(wish, memory_mb=1, host=host)
        fit = [d for d in devices if reason(least, d, pool) == "fits"]
        if not fit or wish.devices > 1:
            continue
        top = max(fit, key=lambda d: min(d.left_mb, room(d.model)))
        room_mb = room(top.model)
        if host != wish.host and min(top.left_mb, room_mb) >= wish.memory_mb:
            continue  # all of it fits there: the change of the host says so
        memory_mb = int(min(top.left_mb, room_mb, wish.memory_mb - 1))
        if memory_mb <= most or (whole(wish, pool) and top.left_mb > room_mb):
            continue
        most = memory_mb
        change: dict[str, int | str | bool] = {"memory_mb": memory_mb}
        if host != wish.host:
            change["host"] = top.host
            least = replace(least, host=top.host)
        says = f"{size(memory_mb)} fits now on {top.host} GPU {top.index}"
        yield RequestChange(change, says), replace(least, memory_mb=memory_mb)


def ends_of(leases: Iterable[LeaseStatus]) -> dict[str, list[End]]:
    """Return device id -> the ends of the leases on it, without endless ones."""
    found: dict[str, list[End]] = defaultdict(list)
    for lease in leases:
        at, basis = lease.expires_at_ms, "revoked" if lease.revoked else "expiry"
        if lease.hold_until_ms is not None and not lease.revoked:
            at, basis = lease.hold_until_ms, "max_hold"
        if lease.preempt_at_ms is not None and at is not None and not lease.revoked:
            at, basis = max(lease.preempt_at_ms, lease.expires_at_ms or 0), "preempted"
        if at is not None:
            for uuid, mb in lease.devices:
                found[uuid].append(End(lease.token, lease.agent, mb, at, basis))
    return found


def size(mb: int) -> str:
    """Return MiB as text for people."""
    return f"{mb} MiB" if mb < MIB_PER_GIB else f"{mb / MIB_PER_GIB:.1f} GiB"


def _groups(devices: Iterable[DeviceStatus]) -> dict[tuple[str, str], list[DeviceStatus]]:
    groups: dict[tuple[str, str], list[DeviceStatus]] = defaultdict(list)
    for device in devices:
        groups[device.host, device.model].append(device)
    return groups
