"""Reading tools' results from what the pool says."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from agent_sdk.state.findings import held_by, of_lease
from agent_sdk.state.lists import shown_state
from broker.mcp.models import (
    Change,
    DeviceView,
    ExplainResult,
    LeasedGpu,
    LeaseView,
    PastUse,
    StatusResult,
    UsageResult,
    Use,
)
from broker.serializers.lease_json import name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk import AsyncLease
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.explain import Explanation
    from agent_sdk.state.part import PoolPart
    from agent_sdk.state.snapshot import LeaseStatus

MOST_ROWS: Final = 64
"""Most rows of a result: a model reads all of them."""

ARGUMENTS: Final = {"devices": "gpus"}
"""Names of options as arguments of the tools, where they differ."""

SERVERS: Final = frozenset({"ttl_s"})
"""Options that the server chooses: no argument changes them."""


def lease_view(lease: AsyncLease, ends: tuple[float | None, str]) -> LeaseView:
    """Return a lease that is held, with what ends it."""
    gpus = [
        LeasedGpu(host=d.host, index=d.index, uuid=d.uuid, name=d.name, memory_mb=d.memory_mb)
        for d in lease.devices
    ]
    return LeaseView(
        token=lease.token,
        agent=lease.agent,
        gpus=gpus,
        memory_mb=lease.memory_mb,
        fence=lease.fence,
        ends_in_s=ends[0],
        ends=ends[1],
        env=lease.env(),
    )


def status(part: PoolPart, *, safe_mode: bool) -> StatusResult:
    """Return the pool, and the devices that match."""
    scene = part.scene
    rows = [
        DeviceView(
            host=d.host,
            index=d.index,
            name=d.name,
            state=shown_state(d.state, drained=d.drained),
            total_mb=d.total_mb,
            free_mb=0 if safe_mode else scene.free_mb(d),
            leases=d.leases,
        )
        for d in part.matching
    ]
    return StatusResult(
        ready=scene.pool.ready,
        safe_mode=safe_mode,
        waiting=scene.pool.waiting,
        free_gpus=sum(row.leases == 0 and row.free_mb > 0 for row in rows),
        devices=rows[:MOST_ROWS],
        more=max(0, len(rows) - MOST_ROWS),
    )


def explained(found: Explanation) -> ExplainResult:
    """Return an explanation; devices are counted by their reason."""
    changes = [
        Change(
            arguments={ARGUMENTS.get(name, name): value for name, value in each.change.items()},
            says=each.says,
        )
        for each in found.fits_now
        if not SERVERS & each.change.keys()
    ]
    return ExplainResult(
        state=found.state,
        code=found.code,
        summary=found.summary,
        estimate_s=found.estimate_s,
        basis=found.basis,
        ahead=found.ahead_count,
        fits_now=changes,
        devices=dict(Counter(each.reason for each in found.devices)),
    )


def usage(
    leases: Sequence[LeaseStatus],
    devices: dict[str, DeviceStatus],
    now_ms: int,
    own: set[str],
    more: int,
    past: PastUse,
) -> UsageResult:
    """Return the use of leases, with sums.

    Args:
        leases: those that are told.
        devices: theirs, by uuid.
        now_ms: the pool's time.
        own: tokens that the caller may see whole.
        more: the number of leases that are not told.
        past: use of the caller's ended ones.
    """
    rows = [_use(each, devices, now_ms, own) for each in leases]
    return UsageResult(
        leases=rows,
        more=more,
        memory_mb=sum(row.memory_mb for row in rows),
        gpu_s=round(sum(row.gpu_s for row in rows), 1),
        past=past,
    )


def _use(lease: LeaseStatus, devices: dict[str, DeviceStatus], now_ms: int, own: set[str]) -> Use:
    held = [devices[uuid] for uuid, _ in lease.devices if uuid in devices]
    age_s = max(0, now_ms - lease.granted_at_ms) / 1000
    return Use(
        token=lease.token if lease.token in own else name_of(lease),
        agent=lease.agent,
        gpus=[f"{device.host}:{device.index}" for device in held],
        memory_mb=lease.memory_mb,
        used_mb=_used_mb(lease.token, held),
        age_s=age_s,
        gpu_s=round(age_s * _gpus(lease, devices), 1),
        findings=list(of_lease(lease, devices)),
    )


def _gpus(lease: LeaseStatus, devices: dict[str, DeviceStatus]) -> float:
    """Return how many GPUs a lease has, a share by its part: as finished leases are counted."""
    gpus = 0.0
    for uuid, mb in lease.devices:
        if device := devices.get(uuid):
            capacity_mb = device.total_mb - device.system_mb
            whole = device.exclusive == lease.token or mb >= capacity_mb
            gpus += 1 if whole else mb / capacity_mb
    return gpus


def _used_mb(token: str, held: Sequence[DeviceStatus]) -> int | None:
    """Return the MiB of a lease's processes; None: a host or a driver does not tell."""
    sizes = [p.memory_mb for device in held for p in held_by(device, token)]
    told = [size for size in sizes if size is not None]
    if any(device.processes is None for device in held) or len(told) < len(sizes):
        return None
    return sum(told)
