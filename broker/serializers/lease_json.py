"""Answers of the endpoints: the documented fields and more. Times are epoch seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import CODES
from agent_sdk.policy import values_of as policy_values
from agent_sdk.protocol.messages import ANY, ENDLESS_MS
from agent_sdk.state.findings import enforced, of_lease
from agent_sdk.state.snapshot import LeaseStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_sdk import AsyncLease, StillWaiting
    from agent_sdk.protocol.messages import Device
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.events import Event
    from agent_sdk.state.explain import Explanation
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import HostStatus, PoolStatus
    from agent_sdk.teams.status import TeamStatus
    from agent_sdk.usage.history import FinishedLease
    from broker.serializers.lease_models import (
        GpuOfLease,
        Host,
        LeaseFields,
        LivingLease,
        NewLease,
        PlaceInQueue,
        Waiter,
        WaiterReservation,
    )

CPU: Final = "cpu"

POLICY_NAMES: Final = {"safe_mode": "safe_mode_read_only"}
"""Names of policy fields in `/policy`, where they differ."""


OTHER_TOKENS: Final = ("for",)
"""Fields of an event, beside `token`, that have the whole token of a lease or a wait."""


def policy(pool: PoolStatus, *, safe_mode: bool) -> dict[str, Any]:
    """Return `/policy`; `safe_mode` is the mode in effect at this broker."""
    values = policy_values(pool) | {"safe_mode": safe_mode}
    said = {POLICY_NAMES.get(name, name): value for name, value in values.items()}
    return said | {"version": pool.policy_version}


def masked(token: str, number: str = "") -> str:
    """Return the beginning of a token and a number: too little to use, enough to compare."""
    return f"{token[:8]}…{number}"


def name_of(what: LeaseStatus | WaiterStatus | FinishedLease) -> str:
    """Return the part of a token that may be shown to all, for a lease or a wait."""
    number = what.fence if isinstance(what, LeaseStatus) else getattr(what, "rank", "")
    return masked(what.token, str(number))


def granted(lease: AsyncLease, team: str) -> NewLease:
    """Return a new lease; one without a GPU has `cpu` and the reason."""
    gpus = [_gpu(d.uuid, d.memory_mb, d) for d in lease.devices]
    endless = lease.remaining_ms > ENDLESS_MS
    ends = None if endless else (lease.expires_at_ms, lease.remaining_ms)
    return {
        **_held(lease, gpus, ends, team), "granted": True, "code": lease.reason, "env": lease.env(),
    }  # fmt: skip


def _gpu(uuid: str, memory_mb: int, at: Device | DeviceStatus | None) -> GpuOfLease:
    """Return a GPU of a lease; what is no longer known is null."""
    return {
        "uuid": uuid,
        "index": at.index if at else None,
        "host": at.host if at else None,
        "name": at.name if at else None,
        "memory_mb": memory_mb,
        "memory_total_mb": (at.total_mb if at else 0) or None,
        "memory_used_mb": at.used_mb if at else None,
        "runtime_id": (at.runtime_id if at else "") or None,
    }


def still_waiting(error: StillWaiting, agent: str, team: str) -> PlaceInQueue:
    """Return the answer after a wait without a lease; its token asks again for the same place."""
    return {
        "granted": False,
        "agent": agent,
        "team": team,
        "token": error.token or "",
        "state": "waiting",
        "place": None if error.place < 0 else error.place,
        "code": error.code,
        "detail": str(error),
        "retryable": error.retryable,
    }


def in_safe_mode(found: Explanation) -> Explanation:
    """Return an explanation of a request as a broker has it whose own SAFE_MODE is on."""
    says = CODES["safe_mode"].says
    basis = f"it does not depend on the end of a lease: {says}"
    return replace(found, code="safe_mode", summary=says, estimate_s=None, basis=basis, fits_now=())


def waiter(waiter: WaiterStatus, now_ms: int) -> Waiter:
    """Return a waiter in the queue, or one with offered devices that it has yet to claim."""
    return {
        "token": waiter.token,
        "agent": waiter.agent,
        "team": waiter.team,
        "state": "offered" if waiter.state == "offered" else "waiting",
        "granted": False,
        "place": waiter.place,
        "capped": waiter.capped,
        "capped_by": waiter.capped_by or None,
        "memory_mb": waiter.memory_mb,
        "devices": waiter.devices,
        "exclusive": waiter.exclusive,
        "priority": waiter.priority,
        "host": None if waiter.asked_host == ANY else waiter.asked_host,
        "model": None if waiter.model == ANY else waiter.model,
        "enqueued_at": waiter.enqueued_ms / 1000,
        "waiting_s": max(0, now_ms - waiter.enqueued_ms) / 1000,
        "gives_up_at": waiter.wait_until_ms / 1000,
        "reserved": list(waiter.reserved),
        "reservation": _reservation(waiter),
    }


def _reservation(waiter: WaiterStatus) -> WaiterReservation | None:
    """Return the waiter's reservation, its begin, and its end if it stays unused."""
    of = waiter.reservation
    if not of:
        return None
    return {
        "devices": list(of.devices),
        "memory_mb": of.memory_mb,
        "since": of.since_ms / 1000 if of.since_ms else None,
        "until": of.until_ms / 1000 if of.until_ms else None,
    }


def known(lease: LeaseStatus, devices: dict[str, DeviceStatus], now_ms: int) -> LivingLease:
    """Return a living lease by its record; `notices`: the findings that its holder was told."""
    gpus = [_gpu(uuid, mb, devices.get(uuid)) for uuid, mb in lease.devices]
    expires = lease.expires_at_ms
    ends = None if expires is None else (expires, max(0, expires - now_ms))
    return {
        **_held(lease, gpus, ends, lease.team),
        "priority": lease.priority,
        "findings": list(of_lease(lease, devices)),
        "notices": list(lease.notices),
        "preempt_at": lease.preempt_at_ms / 1000 if lease.preempt_at_ms else None,
        "preempt_for": lease.preempt_team if lease.preempt_at_ms else None,
        "enforced": enforced(lease, devices),
        "note": lease.note or None,
    }


def _held(
    lease: AsyncLease | LeaseStatus,
    gpus: list[GpuOfLease],
    ends: tuple[int, int] | None,
    team: str,
) -> LeaseFields:
    """Return the fields of any lease; `ends`: its end and the time left, ms; None: no expiry."""
    expires_ms, left_ms = ends or (None, None)
    return {
        "agent": lease.agent,
        "team": team,
        "gpu": gpus[0]["index"] if gpus else CPU,
        "token": lease.token,
        "timestamp": lease.granted_at_ms / 1000,
        "gpus": gpus,
        "host": gpus[0]["host"] if gpus else None,
        "memory_mb": lease.memory_mb,
        "fence": lease.fence,
        "expires_at": None if expires_ms is None else expires_ms / 1000,
        "expires_in_s": None if left_ms is None else left_ms / 1000,
        "ttl_s": lease.ttl_ms / 1000,
        "state": "active" if gpus else CPU,
        "reason": lease.reason,
    }


def teams(found: Iterable[TeamStatus]) -> dict[str, dict[str, Any]]:
    """Return the rows of teams by name; parts of a whole in steps of a hundredth."""
    return {
        team.name: {
            "team": team.name,
            "nominal_mb": team.own_mb,
            "used_mb": team.used_mb,
            "borrowed_mb": team.borrowed_mb,
            "lent_mb": team.lent_mb,
            "leases": team.leases,
            "waiters": team.waiters,
            "used_share": round(team.used_share, 2),
            "wanted_share": round(team.wanted_share, 2),
            "weight": team.weight,
            "models": {
                model: {
                    "nominal_mb": quota.nominal_mb,
                    "used_mb": quota.used_mb,
                    "borrowed_mb": quota.borrowed_mb,
                }
                for model, quota in team.by_model.items()
            },
        }
        for team in found
    }


def host(status: HostStatus, now_ms: int) -> Host:
    """Return a machine that reports devices; `alive` until it was silent for its deadline."""
    silent_ms = max(0, now_ms - status.reported_ms)
    return {
        "host": status.host,
        "version": status.version,
        "devices": status.devices,
        "drained": status.drained,
        "alive": silent_ms <= status.deadline_ms,
        "reported_at": status.reported_ms / 1000,
        "report_age_s": silent_ms / 1000,
        "trouble": status.trouble or None,
        "trouble_since": status.trouble_since_ms / 1000 if status.trouble else None,
        "warning": status.warning or None,
    }


def event(event: Event, places: Mapping[str, tuple[str, int]], *, whole: bool) -> dict[str, Any]:
    """Return an event.

    `places` maps a device id to its host and index; `whole`: with the whole token.
    """
    devices = []
    for uuid, mb in event.devices:
        at, index = places.get(uuid, (None, None))
        devices.append({"uuid": uuid, "index": index, "host": at, "memory_mb": mb})
    said: dict[str, Any] = dict(event.fields)
    if event.fence is not None:
        said["fence"] = event.fence
    if not whole:
        said |= {name: masked(said[name]) for name in OTHER_TOKENS if name in said}
        if event.token is not None:
            said["token"] = masked(event.token, str(event.fence or ""))
    own = {"id": event.id, "event": event.event, "at": event.at_ms / 1000, "devices": devices}
    return own | said | own  # last again: no field of the stream may pass for one of ours
