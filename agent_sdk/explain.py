"""Why somebody waits, or was refused: each device's reason, who is ahead, what would help.

Read with plain pipelined commands, so it is true of the moment at which it looked (`now_ms`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent_sdk import fitting, snapshot, waiting_line
from agent_sdk.errors import CODES, error_for
from agent_sdk.fitting import Change, End, Wish
from agent_sdk.protocol import Answer, Read
from agent_sdk.waiting_line import WaiterStatus

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.protocol import Request
    from agent_sdk.snapshot import DeviceStatus, LeaseStatus, PoolStatus

SHOWN_AHEAD: Final = 20
SHOWN_CHANGES: Final = 4

STANDING: Final = {
    "active": "it is granted: nothing to wait for",
    "offered": "devices are reserved for it: it gets them with its next call, within 10 s",
    "next": "it is next: it is served as soon as enough is free",
    "behind": "others who ask alike are ahead of it",
    "fits": "it fits now: ask",
}
"""How a request stands when no code of `errors.CODES` says more."""

UNCAPPED_MB: Final = 1 << 62
"""What a cap leaves that is none."""


@dataclass(frozen=True, slots=True)
class DeviceReason:
    """Why a device is not given now: a word of `fitting.REASONS`, and the same as a sentence."""

    uuid: str
    host: str
    index: int
    name: str
    reason: str
    free_mb: int
    says: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """One who asks alike and is served before. waiting_s: since when it stands in the line."""

    agent: str
    memory_mb: int
    devices: int
    priority: int
    waiting_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a request stands, and why.

    Attributes:
        token: None for a request that is not in the line.
        state: waiting, offered, active, or asked (not in the line).
        now_ms: when this was looked at, on the pool's clock.
        code: the main reason: a word of STANDING or of `errors.CODES`.
        summary: the same as a sentence.
        ahead: at most 20 of those ahead, the next first; ahead_count: how many there are.
        first_end: the first end of a lease on a device that could be the one, or None.
        estimate_s: when it may be served, seconds from now; None: nobody can know.
        basis: what the estimate stands on, or why there is none.
        fits_now: the smallest changes of the request that would fit now, the least loss first;
            of a waiter: once it has left the line.
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
    fits_now: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What was read, all of about the same moment. host_drained: the host that is asked for."""

    pool: PoolStatus
    devices: tuple[DeviceStatus, ...]
    leases: tuple[LeaseStatus, ...]
    held_mb: int
    held_leases: int
    host_drained: bool

    @property
    def room_mb(self) -> int:
        """MiB that the agent's cap leaves it."""
        if self.held_leases >= self.pool.max_leases_per_agent:
            return 0
        return self.pool.max_memory_per_agent_mb - self.held_mb


def explain(keys: Keys, token: str) -> Generator[Read, Answer, Explanation]:
    """Why a waiter waits, or how a lease stands.

    Raises:
        UnknownToken: nothing is known of it.
        LeaseLost: it is over.
    """
    found = yield from waiting_line.lookup(keys, token)
    if found is None or isinstance(found, str):
        raise error_for(found or "unknown_token", token=token)
    scene = yield from _scene(keys, found.agent, found.asked_host)
    if not isinstance(found, WaiterStatus):
        settled = _settled(token, found.agent, "active", scene)
        why_cpu = CODES.get(found.reason or "")
        if why_cpu is None:
            return settled
        return replace(settled, summary=f"it is granted, on the CPU: {why_cpu.says}")
    if found.state == "offered":
        return _settled(token, found.agent, "offered", scene)
    ahead = yield from _ahead(keys, found, scene.pool.now_ms)
    wish = Wish(
        agent=found.agent,
        memory_mb=found.memory_mb,
        devices=found.devices,
        exclusive=found.exclusive,
        host=found.asked_host,
        model=found.model,
    )
    code = _code(wish, scene)
    if code in {"fits", "no_capacity"}:  # fits: read between two scripts, or kept for a moment
        code = _standing(found, scene)
    return (yield from _explained(keys, wish, scene, code, found, ahead, found.place or 0))


def _standing(waiter: WaiterStatus, scene: _Scene) -> str:
    """What holds back one for whom there is no room, or was none when it was last looked at."""
    # Only who holds something is parked: without it, the waiter is just being served.
    if waiter.parked and scene.held_leases:
        return "agent_cap"
    return "behind" if waiter.place else "next"


def explain_request(keys: Keys, request: Request) -> Generator[Read, Answer, Explanation]:
    """What would become of a request now, without asking for it; or why it was refused."""
    scene = yield from _scene(keys, request.agent, request.host)
    wish = Wish(
        agent=request.agent,
        memory_mb=request.memory_mb or scene.pool.default_memory_mb,
        devices=request.devices,
        exclusive=bool(request.exclusive),
        host=request.host,
        model=request.model,
    )
    answer = yield Read((("ZCARD", keys.line(wish.want)),))
    waiting = int(answer.raw[0])
    code = _code(wish, scene)
    if code in {"fits", "no_capacity"} and waiting:
        code = "behind"
    return (yield from _explained(keys, wish, scene, code, None, (), waiting))


def _scene(keys: Keys, agent: str, host: str) -> Generator[Read, Answer, _Scene]:
    pool = yield from snapshot.pool(keys)
    if not pool.ready:
        raise error_for("not_ready")
    devices = yield from snapshot.devices(keys)
    leases = yield from snapshot.leases(keys)
    answer = yield Read(
        (
            ("HMGET", keys.agents, agent, f"{agent}#leases"),
            ("HGET", keys.host(host), "drained"),
        )
    )
    held_mb, held_leases = (int(value or 0) for value in answer.raw[0])
    return _Scene(pool, devices, leases, held_mb, held_leases, answer.raw[1] == "1")


def _ahead(
    keys: Keys, waiter: WaiterStatus, now_ms: int
) -> Generator[Read, Answer, tuple[Ahead, ...]]:
    """The next of those who stand before it in its want."""
    if not waiter.place:
        return ()
    last = min(waiter.place, SHOWN_AHEAD) - 1
    answer = yield Read((("ZRANGE", keys.line(waiter.want), 0, last),))
    tokens = answer.raw[0]
    rows = (yield Read(tuple(("HGETALL", keys.record(token)) for token in tokens))).raw
    there = [
        waiting_line.waiter_status(token, row, place)
        for place, (token, row) in enumerate(zip(tokens, rows, strict=True))
        if row.get("state") == "waiting"
    ]
    return tuple(
        Ahead(x.agent, x.memory_mb, x.devices, x.priority, max(0, now_ms - x.joined_ms) / 1000)
        for x in there
    )


def _code(wish: Wish, scene: _Scene) -> str:
    """The main reason: of several the strongest, in the order in which acquire tells them."""
    pool = scene.pool
    unfit = fitting.never(wish, scene.devices)
    fits = fitting.placed(wish, scene.devices, pool, scene.room_mb) is not None
    # The whole of a device counts, which may be more than what was asked for.
    uncapped = not fits and fitting.placed(wish, scene.devices, pool, UNCAPPED_MB) is not None
    checks = (
        ("safe_mode", pool.safe_mode),
        ("closed", pool.now_ms < pool.closed_until_ms),
        ("limit", scene.held_leases >= pool.max_leases_per_agent),
        (unfit or "", unfit is not None),
        ("agent_cap", wish.memory_mb * wish.devices > scene.room_mb or uncapped),
        ("fits", fits),
        ("draining", scene.host_drained),
        ("no_capacity", True),
    )
    return next(code for code, holds in checks if holds)


def _explained(
    keys: Keys,
    wish: Wish,
    scene: _Scene,
    code: str,
    waiter: WaiterStatus | None,
    ahead: tuple[Ahead, ...],
    ahead_count: int,
) -> Generator[Read, Answer, Explanation]:
    ends = fitting.ends_of(scene.leases)
    token = waiter.token if waiter else None
    reasons = _reasons(wish, scene, token)
    could = {r.uuid for r in reasons if r.reason not in fitting.ELSEWHERE}
    first = min(
        (end for uuid, found in ends.items() if uuid in could for end in found),
        default=None,
        key=lambda end: end.ends_at_ms,
    )
    estimate_s, basis = _estimate(wish, scene, ends, code, ahead_count)
    fits_now: tuple[Change, ...] = ()
    if code not in {"fits", "safe_mode", "closed", "limit"}:
        fits_now = yield from _fits_now(keys, wish, scene, waiter)
    return Explanation(
        token=token,
        agent=wish.agent,
        state="waiting" if token else "asked",
        now_ms=scene.pool.now_ms,
        code=code,
        summary=_summary(code, reasons, ahead_count),
        devices=reasons,
        ahead=ahead,
        ahead_count=ahead_count,
        first_end=first,
        estimate_s=estimate_s,
        basis=basis,
        fits_now=fits_now,
    )


def _settled(token: str, agent: str, state: str, scene: _Scene) -> Explanation:
    """Of one that waits for nothing."""
    says = STANDING[state]
    return Explanation(
        token=token, agent=agent, state=state, now_ms=scene.pool.now_ms, code=state, summary=says,
        devices=(), ahead=(), ahead_count=0, first_end=None, estimate_s=0.0, basis=says,
        fits_now=(),
    )  # fmt: skip


def _reasons(wish: Wish, scene: _Scene, token: str | None) -> tuple[DeviceReason, ...]:
    found = []
    for d in scene.devices:
        why = fitting.reason(wish, d, scene.pool, token)
        says = fitting.REASONS[why]
        if why == "down":
            says = f"its host says: {d.state} {d.reason}".rstrip()
        found.append(DeviceReason(d.uuid, d.host, d.index, d.name, why, d.free_mb, says))
    return tuple(found)


def _summary(code: str, reasons: Sequence[DeviceReason], ahead_count: int) -> str:
    """One sentence: the main reason, and how the devices that could be the ones stand."""
    says = STANDING.get(code) or CODES[code].says
    if code == "behind":
        who = "one who asks alike is" if ahead_count == 1 else f"{ahead_count} who ask alike are"
        says = f"{who} ahead"
    if code not in {"next", "behind", "no_capacity"}:
        return says
    counts: dict[str, int] = {}
    for reason in reasons:
        if reason.reason not in {"other_host", "other_model", "fits"}:
            counts[reason.reason] = counts.get(reason.reason, 0) + 1
    parts = [f"{count} {word}" for word, count in sorted(counts.items(), key=lambda x: -x[1])]
    return f"{says} (devices: {', '.join(parts)})" if parts else says


def _estimate(
    wish: Wish, scene: _Scene, ends: dict[str, list[End]], code: str, ahead_count: int
) -> tuple[float | None, str]:
    """Seconds until it may be served, and what that stands on."""
    if code == "fits":
        return 0.0, STANDING["fits"]
    if code in {"agent_cap", "limit"}:
        return None, f"it hangs on the agent's own leases and on the policy: {CODES[code].says}"
    if code not in {"next", "behind", "no_capacity"}:
        return None, f"it does not depend on the end of a lease: {CODES[code].says}"
    ready = fitting.ready_at(wish, scene.devices, scene.pool, ends)
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


def _cools(token: str, scene: _Scene) -> bool:
    """Whether what this lease holds is withheld for a while when it expires."""
    held = {uuid for lease in scene.leases if lease.token == token for uuid, _ in lease.devices}
    real = any(d.uuid in held and not d.simulated for d in scene.devices)
    return real and scene.pool.expiry_grace_s > 0


def _fits_now(
    keys: Keys, wish: Wish, scene: _Scene, waiter: WaiterStatus | None
) -> Generator[Read, Answer, tuple[Change, ...]]:
    """Changes that fit by placement, and in whose want nobody else waits."""
    devices = scene.devices
    if waiter and waiter.kept and scene.pool.waiting == 1:  # nobody else gets them if it leaves
        devices = tuple(
            replace(d, kept_for="") if d.kept_for == waiter.token else d for d in devices
        )
    found = list(fitting.changes(wish, devices, scene.pool, scene.room_mb))
    if not found:
        return ()
    answer = yield Read(tuple(("ZCARD", keys.line(other.want)) for _, other in found))
    own = waiter.want if waiter and not waiter.parked else None
    open_ones = [
        change
        for (change, other), waiting in zip(found, answer.raw, strict=True)
        if waiting == (1 if other.want == own else 0)
    ]
    return tuple(open_ones[:SHOWN_CHANGES])
