"""Device as the pool shows it: its leases, its use, the findings of its host."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.state.finding_kinds import KINDS
from agent_sdk.state.telemetry import MEASUREMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.reservations import Reservation

DEVICE_NUMBERS = (
    "total_mb", "system_mb", "leased_mb", "withheld_mb", "unleased_mb", "leases",
)  # fmt: skip

MOST: Final = 2**53 - 1
"""Largest whole number of a process: more is none that a host has seen."""

AMD: Final = "amd:"
"""Beginning of the ids of AMD's GPUs and of their partitions."""

IDLE_UNLEASED_MB = 512
"""MiB that a driver and a desktop use on an unused GPU whose host reports no other limit."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Process on a device, as its host last saw it.

    Attributes:
        memory_mb: allocated MiB; None: the driver does not tell.
        name: its program's name.
        user: its user's name or number; empty = unknown.
        token: its lease's token, maybe of an ended lease; empty = unknown.
        finding: squatter, orphan, or empty.
        since_ms: the first sight of it there, on the pool's clock.
        start: its start, in clock ticks since its host's boot; 0 = unknown.
        busy_pct: share of the GPU's recent time that it computed, 0-100; None: unknown.
        graphics_only: it draws, as a desktop does, and computes nothing.
    """

    pid: int
    memory_mb: int | None
    name: str
    user: str
    token: str
    finding: str
    since_ms: int
    busy_pct: float | None = None
    start: int = 0
    graphics_only: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Finding of a host on a device; it stands as long as it is listed.

    Attributes:
        kind: a word of `KINDS`.
        subject: the lease's token, or the process's pid.
    """

    kind: str
    subject: str


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Device as its host last reported it, with its leases. Memory in MiB.

    Attributes:
        state: ok, or a word of the reporter or the broker for its trouble.
        exclusive: the token of the lease that is alone on it, or empty.
        reserved_for: the token of the waiter that it is reserved for, or empty.
        reservation: the same with the agent and the times; None: it is not reserved.
        one_lease: the reason for which it takes one lease at a time; empty: it may be shared.
        idle_unleased_mb: most `unleased_mb` with which it still counts as unused.
        used_mb: MiB in use by the driver's word, or None.
        sampled_ms: the pool's time of the sample; 0 = unknown.
        processes: its processes; None: its host cannot tell.
        unseen: the reason for which they are not told, or not all.
        findings: findings about leases and processes on it.
        quarantine: its host's reason not to lend it; empty: it is lent.
        xid: its last NVIDIA error code, at `xid_ms`; 0 = none.
        parent: the GPU that a MIG device is a part of.
        runtime_id: its name for the runtime beside the UUID, or empty.
        unified: it has no memory of its own, and uses its machine's.
        finder: the reporter that names its findings, last at `finder_ms`.
        reporter: the process that listed it; empty: unknown.
        drain_by: the operator that drained it, with `drain_reason`; empty: not drained, or unknown.
        rival: a host that lists it too and was refused, last at `rival_ms`.
        limited: tokens of the leases whose memory its driver limits.
        limit_error: the reason for which it does not limit another one that asks for it; or empty.
    """

    uuid: str
    index: int
    host: str
    name: str
    model: str
    state: str
    reason: str
    drained: bool
    simulated: bool
    total_mb: int
    system_mb: int
    leased_mb: int
    withheld_mb: int
    unleased_mb: int
    leases: int
    exclusive: str
    reserved_for: str
    used_mb: int | None
    sampled_ms: int
    nvml_error: str | None
    telemetry: dict[str, float | None] = field(default_factory=dict)
    processes: tuple[ProcessStatus, ...] | None = None
    unseen: str = ""
    findings: tuple[Finding, ...] = ()
    quarantine: str = ""
    xid: int = 0
    xid_ms: int = 0
    parent: str = ""
    unified: bool = False
    finder: str = ""
    finder_ms: int = 0
    reservation: Reservation | None = None
    reporter: str = ""
    rival: str = ""
    rival_ms: int = 0
    limited: tuple[str, ...] = ()
    limit_error: str = ""
    drain_by: str = ""
    drain_reason: str = ""
    runtime_id: str = ""
    one_lease: str = ""
    idle_unleased_mb: int = IDLE_UNLEASED_MB

    @property
    def alone(self) -> bool:
        """True if a program can use no other device beside it: `broker.joins` of the scripts."""
        return bool(self.parent) and not self.uuid.startswith(AMD)

    @property
    def free_mb(self) -> int:
        """MiB for the next request; 0 on a device that takes no new leases."""
        takes = self.state == "ok" and not (self.drained or self.reserved_for or self.exclusive)
        return max(0, self.left_mb) if takes and not self.one_lease_held else 0

    def free_for(self, *, shares: bool) -> int:
        """Return the MiB for the next request; without `shares` the policy gives whole GPUs."""
        return self.free_mb if shares or self.empty else 0

    @property
    def empty(self) -> bool:
        """True if nothing is on it that a lease of the whole device would have to wait for."""
        held = self.leases > 0 or self.withheld_mb > 0
        return not held and self.unleased_mb <= self.idle_unleased_mb

    @property
    def one_lease_held(self) -> bool:
        """True if it takes one lease at a time, and one has it or its memory is withheld."""
        return bool(self.one_lease) and (self.leases > 0 or self.withheld_mb > 0)

    @property
    def left_mb(self) -> int:
        """MiB that are neither leased nor used, even if no lease may begin there.

        Negative when other processes use leased memory.
        """
        held = self.leased_mb + self.withheld_mb + self.unleased_mb
        return self.total_mb - self.system_mb - held


def counted_once(devices: Iterable[DeviceStatus]) -> list[DeviceStatus]:
    """Return the devices that make up the memory of a pool: a divided GPU counts by its parts."""
    found = list(devices)
    parents = {device.parent for device in found}
    return [d for d in found if d.state != "mig" and d.uuid not in parents]


def device_status(uuid: str, row: dict[str, str]) -> DeviceStatus:
    """Return a device by its hash, as `report` and the other verbs wrote it."""
    return DeviceStatus(
        uuid=uuid,
        index=int(row["index"]),
        host=row["host"],
        name=row["name"],
        model=row["model"],
        state=row["state"],
        reason=row.get("reason", ""),
        drained=row["drained"] == "1",
        simulated=row.get("simulated") == "1",
        exclusive=row["exclusive"],
        reserved_for=row["reserved_for"],
        used_mb=int(row["used_mb"]) if row.get("used_mb") else None,
        sampled_ms=int(row.get("sampled_ms", 0)),
        nvml_error=row.get("nvml_error") or None,
        telemetry={name: _measured(row.get(name)) for name in MEASUREMENTS},
        processes=_processes(row.get("processes", "")),
        unseen=row.get("unseen", ""),
        findings=tuple(
            Finding(kind, subject)
            for kind in KINDS
            for subject in filter(None, row.get(kind, "").split(","))
        ),
        quarantine=row.get("quarantine", ""),
        xid=int(row.get("xid") or 0),
        xid_ms=int(row.get("xid_ms") or 0),
        parent=row.get("parent", ""),
        runtime_id=row.get("runtime_id", ""),
        unified=row.get("unified") == "1",
        finder=row.get("finder", ""),
        finder_ms=int(row.get("finder_ms") or 0),
        reservation=None,
        reporter=row.get("reporter", ""),
        rival=row.get("rival", ""),
        rival_ms=int(row.get("rival_ms") or 0),
        limited=tuple(filter(None, row.get("limited", "").split(","))),
        limit_error=row.get("limit_error", ""),
        drain_by=row.get("drain_by", ""),
        drain_reason=row.get("drain_reason", ""),
        one_lease=row.get("one_lease", ""),
        idle_unleased_mb=int(row.get("idle_unleased_mb") or IDLE_UNLEASED_MB),
        **{name: int(row[name]) for name in DEVICE_NUMBERS},
    )


def _processes(text: str) -> tuple[ProcessStatus, ...] | None:
    """Return a device's processes; a text of unknown form counts as unknown."""
    try:
        return tuple(map(_process, json.loads(text))) if text else None
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _process(row: dict[str, Any]) -> ProcessStatus:
    """Return a process by the fields that this version knows."""
    memory_mb, busy_pct = row.get("memory_mb"), row.get("busy_pct")
    return ProcessStatus(
        pid=_whole(row["pid"]),
        memory_mb=None if memory_mb is None else _whole(memory_mb),
        name=_text(row.get("name", "")),
        user=_text(row.get("user", "")),
        token=_text(row.get("token", "")),
        finding=_text(row.get("finding", "")),
        since_ms=_whole(row.get("since_ms", 0)),
        busy_pct=None if busy_pct is None else _finite(float(busy_pct)),
        start=_whole(row.get("start", 0)),
        graphics_only=row.get("graphics_only") is True,
    )


def _measured(text: str | None) -> float | None:
    """Return a measured number; text that is no number in JSON counts as missing."""
    return _finite(float(text or "nan"))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int:
    """Return a whole number that every JSON reader has exactly.

    Raises:
        ValueError: it is larger.
    """
    number = int(value)
    if abs(number) > MOST:
        raise ValueError("a number of a process is too large")
    return number


def _text(value: object) -> str:
    """Return a text; half a letter, as JSON may have, is a `?`: no answer could have it."""
    return str(value).encode(errors="replace").decode()
