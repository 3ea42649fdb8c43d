"""Explanation of a wait or a refusal: each device's reason, the waiters ahead, the remedies.

Read with plain pipelined commands, so it is true at the time of the reading (`now_ms`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import CODES, error_for
from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.protocol.refusals import team_limit_says, team_unknown_says
from agent_sdk.state import findings, placement, queue, reservations
from agent_sdk.state.placement import End, PlacementRequest, RequestChange
from agent_sdk.state.pool_state import (
    BY_CAPS,
    BY_DEVICES,
    STANDING,
    counted,
    limit_says,
    preempting_for,
    read_queue,
    reasons,
    reserved_for,
    summary,
    unknown_host,
    why,
    why_waits,
    with_leases_on,
)
from agent_sdk.state.queue import WaiterStatus

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read, Request
    from agent_sdk.state.caps import Barrier
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.pool_state import PoolState
    from agent_sdk.state.reservations import Reservation
    from agent_sdk.state.snapshot import LeaseStatus

PRIORITY_US: Final = 60_000_000
"""Microseconds in the queue that a step of priority is worth, as in `lua/lib/queue.lua`."""

SHOWN_AHEAD: Final = 20
SHOWN_CHANGES: Final = 4


@dataclass(frozen=True, slots=True)
class DeviceReason:
    """Reason against a device now: a word of `placement.REASONS`, and the same as a sentence."""

    uuid: str
    host: str
    index: int
    name: str
    reason: str
    free_mb: int
    says: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """Waiter of the same queue with a better rank. `waiting_s`: seconds in the queue."""

    agent: str
    memory_mb: int
    devices: int
    priority: int
    waiting_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """State of a request, and the reasons.

    Attributes:
        token: None for a request that is not in the queue.
        state: waiting, offered, active, or asked (not in the queue).
        now_ms: the time of the reading, on the pool's clock.
        code: the main reason: a word of STANDING or of `errors.CODES`.
        summary: the same as a sentence.
        ahead: at most 20 of the waiters ahead, the next first; ahead_count: their number.
        first_end: the first end of a lease on a device that would do, or None.
        estimate_s: seconds until a grant may come; None: unknowable.
        basis: the grounds of the estimate, or the reason for none.
        fits_now: the smallest changes of the request that would fit now, the least loss first;
            of a waiter: once it has left the queue.
        reservation: its reservation, with begin and end; None: it has none.
        host, near_host: of an unknown host: the one asked for, and the one with devices whose
            name differs by case and domain alone; else empty.
    """

    token: str | None
    agent: str
    state: str
    now_ms: int
    code: str
    summary: str
    devices: tuple[DeviceReason, ...]
    ahead: tuple[Ahead, ...]
    ahead_count: int
    first_end: End | None
    estimate_s: float | None
    basis: str
    fits_now: tuple[RequestChange, ...]
    reservation: Reservation | None = None
    host: str = ""
    near_host: str = ""


def explain(keys: Keys, token: str) -> Generator[Read, Answer, Explanation]:
    """Explain a wait, or the state of a lease.

    Raises:
        UnknownToken: the token is unknown.
        LeaseLost: it is over.
    """
    found = yield from queue.lookup(keys, token)
    if found is None or isinstance(found, str):
        raise error_for(found or "unknown_token", token=token)
    scene = yield from _scene(keys)
    if not isinstance(found, WaiterStatus):
        settled = _settled(token, found.agent, "active", scene)
        return replace(settled, summary=_granted(found, scene) or settled.summary)
    if found.state == "offered":
        return _settled(token, found.agent, "offered", scene)
    wish = found.wish
    scene = yield from _with_leases(keys, scene, wish)
    return _explained(wish, scene, why_waits(found, scene), found, found.place or 0)


def explain_request(keys: Keys, request: Request) -> Generator[Read, Answer, Explanation]:
    """Explain the outlook of a request without making it, or the reason of its refusal."""
    scene = yield from _scene(keys)
    wish = PlacementRequest.of(request, scene.pool)
    barrier = scene.caps.barrier(request)
    if barrier and not scene.pool.safe_mode:
        scene = yield from _with_leases(keys, scene, wish)
        return _barred(wish, scene, barrier)
    waiting = _queue(wish.queue_id, scene)
    rank = (scene.pool.now_ms + 1) * 1000 - request.priority * PRIORITY_US
    ahead = sum(waiter.rank < rank for waiter in waiting)
    code = why(wish, scene)
    if code in {"fits", "no_capacity"} and waiting:
        code = "behind" if ahead else "next"
    hold_s = scene.caps.of_team(wish.team).limit("max_hold_s") or 0
    hold_ms = request.max_hold_ms or 1000 * hold_s
    if hold_ms and scene.pool.waiting and code in {*BY_DEVICES, "agent_cap"}:
        lent = yield from reservations.lent(keys, scene.pool.now_ms + hold_ms)
        some = reservations.with_some_lent(wish, scene.devices, lent)
        if why(wish, replace(scene, devices=some)) == "fits":
            scene = replace(scene, devices=reservations.unreserved(scene.devices, lent))
            code, ahead = "fits", 0
    scene = yield from _with_leases(keys, scene, wish)
    return _explained(wish, scene, code, None, ahead)


def _granted(lease: LeaseStatus, scene: PoolState) -> str:
    """Return the sentence of a lease with more to say than that it is granted; else empty."""
    why_cpu = CODES.get(lease.reason or "")
    if why_cpu is not None:
        return f"it is granted, on the CPU: {why_cpu.says}"
    parts = []
    if lease.preempt_at_ms is not None:
        left_s = max(0, lease.preempt_at_ms - scene.pool.now_ms) // 1000
        parts.append(
            f"preempting in {left_s} s, for {lease.preempt_by} of team {lease.preempt_team}"
        )
    if lease.wanted:
        agent, mb = lease.wanted
        parts.append(f"{agent} asks for it, and waits for {placement.size(mb)}")
    return "; ".join(("it is granted", *parts)) if parts else ""


def _barred(wish: PlacementRequest, scene: PoolState, barrier: Barrier) -> Explanation:
    """Explain the refusal of what a request's team may never have."""
    unknown, change = barrier.code == "team_unknown", barrier.change
    says = team_unknown_says(wish.team)
    if not unknown:
        says = team_limit_says(barrier.detail, wish.team)
    other = replace(wish, team=DEFAULT_TEAM) if unknown else wish
    fits_now: tuple[RequestChange, ...] = ()
    if not change:
        fits_now = _fits_now(wish, scene, None)
    elif why(other, scene) == "fits" and not _queue(other.queue_id, scene):
        options = " ".join(f"{name}={value}" for name, value in change.items())
        fits_now = (RequestChange(change, f"the same with {options} fits now"),)
    return replace(
        _settled(None, wish.agent, "asked", scene, barrier.code),
        summary=says,
        devices=_reasons(wish, scene, None),
        estimate_s=None,
        basis=f"it does not depend on the end of a lease: {says}",
        fits_now=fits_now,
    )


def _scene(keys: Keys) -> Generator[Read, Answer, PoolState]:
    found = yield from read_queue(keys)
    if not found.pool.ready:
        raise error_for("not_ready")
    return found


def _with_leases(
    keys: Keys, scene: PoolState, wish: PlacementRequest
) -> Generator[Read, Answer, PoolState]:
    """Read the leases on the devices that a request may get: no others concern it."""
    asked = [u for u, d in scene.devices.items() if not placement.elsewhere(wish, d)]
    return (yield from with_leases_on(keys, scene, asked))


def _queue(queue_id: str, scene: PoolState) -> list[WaiterStatus]:
    """Return the waiters of a queue, the next first."""
    return [w for w in scene.waiters.values() if w.queue_id == queue_id and w.place is not None]


def _ahead(queue_id: str, count: int, token: str | None, scene: PoolState) -> tuple[Ahead, ...]:
    """Return the next of so many waiters that are ahead in a queue."""
    now_ms = scene.pool.now_ms
    return tuple(
        Ahead(x.agent, x.memory_mb, x.devices, x.priority, max(0, now_ms - x.enqueued_ms) / 1000)
        for x in _queue(queue_id, scene)[: min(count, SHOWN_AHEAD)]
        if x.token != token
    )


def _explained(
    wish: PlacementRequest,
    scene: PoolState,
    code: str,
    waiter: WaiterStatus | None,
    ahead_count: int,
) -> Explanation:
    ends = placement.ends_of(scene.leases.values())
    token = waiter.token if waiter else None
    devices = _reasons(wish, scene, token)
    could = {r.uuid for r in devices if r.reason not in placement.ELSEWHERE}
    first = min(
        (end for uuid, found in ends.items() if uuid in could for end in found),
        default=None,
        key=lambda end: end.ends_at_ms,
    )
    estimate_s, basis = _estimate(wish, scene, ends, code, ahead_count, token)
    if waiter and waiter.preempt_at_ms is not None:
        estimate_s = max(0.0, (waiter.preempt_at_ms - scene.pool.now_ms) / 1000)
        basis = "the leases that are preempted for it end by then, or within a minute after"
    fits_now: tuple[RequestChange, ...] = ()
    unknown = unknown_host(wish.host, scene) if code == "host_unknown" else None
    if code not in {"fits", "safe_mode", "closed", "limit"}:
        fits_now = _fits_now(wish, scene, waiter)
    return Explanation(
        token=token,
        agent=wish.agent,
        state="waiting" if token else "asked",
        now_ms=scene.pool.now_ms,
        code=code,
        summary=summary(code, wish, scene, counted(d.reason for d in devices), ahead_count, waiter)
        + (preempting_for(waiter, scene) + reserved_for(waiter, scene) if waiter else ""),
        devices=devices,
        ahead=_ahead(waiter.queue_id if waiter else wish.queue_id, ahead_count, token, scene),
        ahead_count=ahead_count,
        first_end=first,
        estimate_s=estimate_s,
        basis=basis,
        fits_now=fits_now,
        reservation=waiter.reservation if waiter else None,
        host=unknown.asked if unknown else "",
        near_host=unknown.near if unknown else "",
    )


def _settled(
    token: str | None, agent: str, state: str, scene: PoolState, code: str | None = None
) -> Explanation:
    """Return the explanation of a request that waits for nothing."""
    says = STANDING.get(state, "")
    return Explanation(
        token=token, agent=agent, state=state, now_ms=scene.pool.now_ms, code=code or state,
        summary=says,
        devices=(), ahead=(), ahead_count=0, first_end=None, estimate_s=0.0, basis=says,
        fits_now=(),
    )  # fmt: skip


def _reasons(
    wish: PlacementRequest, scene: PoolState, token: str | None
) -> tuple[DeviceReason, ...]:
    found = []
    for uuid, word in reasons(wish, scene, token).items():
        d = scene.devices[uuid]
        says = _says(word, d, scene, whole=placement.whole(wish, scene.pool))
        found.append(DeviceReason(d.uuid, d.host, d.index, d.name, word, scene.free_mb(d), says))
    return tuple(found)


def _says(word: str, device: DeviceStatus, scene: PoolState, *, whole: bool) -> str:
    """Return a device's reason as a sentence, with the facts about this device."""
    says = placement.REASONS[word]
    if word == "down":
        return f"its host says: {device.state} {device.reason}".rstrip()
    if word == "reserved" and device.reservation:
        return f"{reservations.says(device.reservation, scene.pool.now_ms)}, which has waited long"
    if word == "quarantined" and device.quarantine:
        return f"{says}: {device.quarantine}"
    if word == "one_lease":
        return f"{says}: {device.one_lease}"
    if word == "used_by_others":
        says = f"{device.unleased_mb} MiB used by processes without a lease"
    if word == "used_by_others" and whole:
        says += (
            f", of {device.idle_unleased_mb} MiB beside which a whole device is lent (policy "
            "idle_foreign_mb)"
        )
    if word not in {"dirty", "used_by_others"}:
        return says
    others = findings.named(findings.unleased(device, scene.leases))
    return f"{says} ({others})" if others else says


def _estimate(
    wish: PlacementRequest,
    scene: PoolState,
    ends: dict[str, list[End]],
    code: str,
    ahead_count: int,
    token: str | None,
) -> tuple[float | None, str]:
    """Return the seconds until a grant, and the grounds of that."""
    if code == "fits":
        return 0.0, STANDING["fits"]
    if code in BY_CAPS:
        says = limit_says(code, wish, scene)
        return None, f"it hangs on {_whose(says)} own leases and on the policy: {says}"
    if code not in BY_DEVICES:
        return None, f"it does not depend on the end of a lease: {CODES[code].says}"
    ready = placement.ready_at(wish, scene.devices.values(), scene.pool, ends, token)
    if ready is None:
        return None, "no lease has an end that would free enough"
    at_ms, end = ready
    if end.basis == "now":
        basis = "what it asks is free"
    elif end.basis == "expiry":
        basis = f"if {end.agent} does not renew lease {end.token[:8]}"
    else:
        basis = f"lease {end.token[:8]} of {end.agent} ends by then ({end.basis})"
    if _cools(end.token, scene):
        basis += f"; its memory follows within {scene.pool.expiry_grace_s} s"
    if ahead_count:
        basis += f"; {ahead_count} ahead not reckoned in"
    return max(0.0, (at_ms - scene.pool.now_ms) / 1000), basis


def _whose(says: str) -> str:
    """Return the one whose cap a sentence is about, by its first words."""
    key, team = says.startswith("API key "), says.startswith("team ")
    return "the key's" if key else "the team's" if team else "the agent's"


def _cools(token: str, scene: PoolState) -> bool:
    """Return whether this lease's memory is withheld for a while when it expires."""
    lease = scene.leases.get(token)
    held = {uuid for uuid, _ in lease.devices} if lease else set()
    real = any(not scene.devices[uuid].simulated for uuid in held if uuid in scene.devices)
    return real and scene.pool.expiry_grace_s > 0


def _fits_now(
    wish: PlacementRequest, scene: PoolState, waiter: WaiterStatus | None
) -> tuple[RequestChange, ...]:
    """Return the changes that fit by placement, into queues where nothing else waits."""
    devices = tuple(scene.devices.values())
    # no other request gets them if it leaves
    if waiter and waiter.reserved and scene.pool.waiting == 1:
        devices = tuple(
            replace(d, reserved_for="", reservation=None) if d.reserved_for == waiter.token else d
            for d in devices
        )
    own = waiter.queue_id if waiter and not waiter.capped else None
    found = placement.changes(
        wish, devices, scene.pool, scene.caps.room_by_model(wish, waiter.token if waiter else None)
    )
    open_ones = (
        change
        for change, other in found
        if len(_queue(other.queue_id, scene)) == (1 if other.queue_id == own else 0)
    )
    return tuple(islice(open_ones, SHOWN_CHANGES))
