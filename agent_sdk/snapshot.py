"""What the pool looks like at one moment. Reading is never a verb: plain pipelined commands.

Between two pipelines of one reading the pool may move on; every part says at what time it looked.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from agent_sdk.protocol import Answer, Read, of_known_form

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from agent_sdk.keys import Keys

T = TypeVar("T")

log = logging.getLogger(__name__)

PAGE = 500
"""Hashes read in one pipeline."""

ENDLESS_MS = 5 * 365 * 24 * 3600 * 1000
"""A lease without expiry ends ten years after its grant; none with a ttl lasts half of that."""

DEVICE_NUMBERS = (
    "total_mb", "reserve_mb", "reserved_mb", "withheld_mb", "foreign_mb", "leases",
)  # fmt: skip

TELEMETRY = (
    "utilization_gpu_pct", "memory_utilization_pct", "temperature_c", "power_draw_w",
    "pcie_tx_kb_s", "pcie_rx_kb_s", "nvml_gpu_util_pct", "nvml_mem_used_mb", "nvml_mem_total_mb",
    "nvml_mem_util_pct", "power_limit_w", "clock_sm_mhz", "clock_memory_mhz", "ecc_uncorrected",
    "rows_pending", "rows_failed", "recovery_action", "mps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool's policy and counters.

    Attributes:
        now_ms: when this was looked at, on the pool's clock.
        ready: False until a host has reported for the first time.
        waiting: how many stand in the line.
        policy: as in `pool`, by field name.
        stats: counters since the pool's beginning; every replica reads the same.
    """

    now_ms: int
    ready: bool
    epoch: str
    policy_version: int
    safe_mode: bool
    max_memory_per_agent_mb: int
    allow_fractional_shares: bool
    kill_on_oom: bool
    default_memory_mb: int
    expiry_grace_s: int
    max_leases_per_agent: int
    max_waiters_per_agent: int
    idle_action: str
    overuse_action: str
    squatter_action: str
    orphan_action: str
    idle_after_s: int
    enforce_after_s: int
    overuse_slack_mb: int
    xid_actions: str
    closed_until_ms: int
    waiting: int
    stats: dict[str, int]

    @property
    def active_leases(self) -> int:
        """GPU leases that live now: granted, or adopted, and not ended."""
        return self._live("")

    @property
    def active_cpu_leases(self) -> int:
        """CPU leases that live now."""
        return self._live("cpu_")

    def _live(self, kind: str) -> int:
        ended = sum(self.stats.get(kind + how, 0) for how in ("released", "expired", "revoked"))
        return sum(self.stats.get(kind + how, 0) for how in ("granted", "adopted")) - ended


FINDINGS = ("idle", "overuse", "squatter", "orphan", "degraded")
"""What a host may find; the first two and the last are said of a lease, the others of a process."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process on a device, as its host last saw it.

    Attributes:
        memory_mb: MiB that it has allocated; None: the driver does not tell.
        name: of its program.
        user: who runs it, a name or a number; empty = unknown.
        token: of the lease that it belongs to, which may be over; empty = none is known.
        finding: squatter, orphan, or empty.
        since_ms: when it was seen there first, on the pool's clock.
        start: when it started, in clock ticks since its host's boot; 0 = unknown.
        busy_pct: of the GPU's time that it computed lately, 0-100; None: unknown.
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


@dataclass(frozen=True, slots=True)
class Finding:
    """What a host found on a device, and finds as long as it is listed.

    Attributes:
        kind: a word of `FINDINGS`.
        subject: the lease's token, or the process's pid.
    """

    kind: str
    subject: str


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device as its host last reported it, with what the broker promised on it. Memory in MiB.

    Attributes:
        state: ok, or what the reporter or the broker says is wrong with it.
        exclusive: the token of who is alone on it, or empty.
        kept_for: the token of the waiter for whom it is kept, or empty.
        free_mb: what may still be leased; may be negative when others use what was promised.
        used_mb: what the driver sees in use, or None.
        sampled_ms: the pool's time of the sample; 0 = unknown.
        processes: who uses it; None: its host cannot tell, and `unseen` says why.
        findings: of leases and processes on it.
        quarantine: why its host lends it to nobody until that is over; empty = it does.
        xid: the last of NVIDIA's error codes that came from it, with `xid_ms`, when; 0 = none.
        parent: of a MIG device: the GPU that it is a part of.
        finder: which reporter of its host says what is found, with `finder_ms`, when it last did.
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
    reserve_mb: int
    reserved_mb: int
    withheld_mb: int
    foreign_mb: int
    leases: int
    exclusive: str
    kept_for: str
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
    finder: str = ""
    finder_ms: int = 0

    @property
    def free_mb(self) -> int:
        """MiB that are promised to nobody and used by nobody."""
        held = self.reserved_mb + self.withheld_mb + self.foreign_mb
        return self.total_mb - self.reserve_mb - held


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """A lease's record.

    Attributes:
        devices: (device id, MiB) of each device held.
        expires_at_ms: the end on Redis's clock; None = no expiry.
        hold_until_ms: renewals never go past it; None = no limit.
        revoked: an operator ended its renewals.
        asked_host: the host that was asked for; `*` = any.
        pid: the holder as `pid:start time`; empty = it did not say.
        notices: what its host found of it, words of `FINDINGS`, of which it is told.
    """

    token: str
    agent: str
    state: str
    devices: tuple[tuple[str, int], ...]
    fence: int
    granted_at_ms: int
    expires_at_ms: int | None
    ttl_ms: int
    hold_until_ms: int | None
    revoked: bool
    priority: int
    asked_host: str
    reason: str | None
    owner: str
    client: str
    pid: str
    notices: tuple[str, ...] = ()

    @property
    def memory_mb(self) -> int:
        """MiB held on all its devices together."""
        return sum(mb for _, mb in self.devices)


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A machine that reports devices, or did."""

    host: str
    version: str
    reported_ms: int
    deadline_ms: int
    devices: int
    drained: bool


def pool(keys: Keys) -> Generator[Read, Answer, PoolStatus]:
    """Policy, counters and time.

    Raises:
        ProtocolMismatch: they are of no known form.
    """
    answer = yield Read((("TIME",), ("HGETALL", keys.pool), ("HGETALL", keys.stats)))
    return _pool(*answer.raw)


@of_known_form
def _pool(time: list[Any], row: dict[str, str], stats: dict[str, str]) -> PoolStatus:
    def number(name: str) -> int:
        return int(row.get(name, 0))

    return PoolStatus(
        now_ms=int(time[0]) * 1000 + int(time[1]) // 1000 + number("offset_ms"),
        ready=bool(row),
        epoch=row.get("epoch", ""),
        policy_version=number("policy_version"),
        safe_mode=row.get("safe_mode") == "1",
        max_memory_per_agent_mb=number("max_memory_per_agent_mb"),
        allow_fractional_shares=row.get("allow_fractional_shares") == "1",
        kill_on_oom=row.get("kill_on_oom") == "1",
        default_memory_mb=number("default_memory_mb"),
        expiry_grace_s=number("expiry_grace_s"),
        max_leases_per_agent=number("max_leases_per_agent"),
        max_waiters_per_agent=number("max_waiters_per_agent"),
        idle_action=row.get("idle_action", "observe"),
        overuse_action=row.get("overuse_action", "observe"),
        squatter_action=row.get("squatter_action", "observe"),
        orphan_action=row.get("orphan_action", "observe"),
        idle_after_s=int(row.get("idle_after_s", 600)),
        enforce_after_s=int(row.get("enforce_after_s", 60)),
        overuse_slack_mb=int(row.get("overuse_slack_mb", 512)),
        xid_actions=row.get("xid_actions", ""),
        closed_until_ms=number("closed_until_ms"),
        waiting=number("waiting"),
        stats={name: int(value) for name, value in stats.items()},
    )


def devices(keys: Keys) -> Generator[Read, Answer, tuple[DeviceStatus, ...]]:
    """Every registered device, by host and index."""
    answer = yield Read((("ZRANGE", keys.fits, 0, -1),))
    found = yield from devices_of(keys, answer.raw[0])
    return tuple(sorted(found, key=lambda d: (d.host, d.index, d.uuid)))


def devices_of(keys: Keys, uuids: list[str]) -> Generator[Read, Answer, list[DeviceStatus]]:
    """Those of these devices that are registered."""
    rows = yield from _hashes([keys.device(uuid) for uuid in uuids])
    return list(legible(_device, ((u, row) for u, row in zip(uuids, rows, strict=True) if row)))


def leases(keys: Keys) -> Generator[Read, Answer, tuple[LeaseStatus, ...]]:
    """Every lease that lives, oldest first."""
    rows = yield from records(keys, ("active",))
    found = legible(lease_status, rows.items())
    return tuple(sorted(found, key=lambda lease: lease.fence))


def records(
    keys: Keys, states: tuple[str, ...]
) -> Generator[Read, Answer, dict[str, dict[str, str]]]:
    """The hashes of all records in these states, by token."""
    answer = yield Read((("ZRANGE", keys.due, 0, -1),))
    tokens = [member for member in answer.raw[0] if not member.startswith("host:")]
    return (yield from records_of(keys, tokens, states))


def records_of(
    keys: Keys, tokens: list[str], states: tuple[str, ...]
) -> Generator[Read, Answer, dict[str, dict[str, str]]]:
    """The hashes of those of these tokens that are in these states."""
    rows = yield from _hashes([keys.record(token) for token in tokens])
    found = zip(tokens, rows, strict=True)
    return {token: row for token, row in found if row.get("state") in states}


def hosts(keys: Keys) -> Generator[Read, Answer, tuple[HostStatus, ...]]:
    """Every host that ever reported, by name."""
    answer = yield Read((("SMEMBERS", keys.hosts),))
    names = sorted(answer.raw[0])
    rows = yield from _hashes([keys.host(name) for name in names])
    if not names:
        return ()
    counts = yield Read(tuple(("SCARD", keys.devices(name)) for name in names))
    of = dict(zip(names, counts.raw, strict=True))

    def host(name: str, row: dict[str, str]) -> HostStatus:
        return HostStatus(
            host=name,
            version=row.get("version", ""),
            reported_ms=int(row.get("reported_ms", 0)),
            deadline_ms=int(row.get("deadline_ms", 0)),
            devices=of[name],
            drained=row.get("drained") == "1",
        )

    return tuple(legible(host, zip(names, rows, strict=True)))


def _hashes(names: list[str]) -> Generator[Read, Answer, list[dict[str, str]]]:
    rows: list[dict[str, str]] = []
    for start in range(0, len(names), PAGE):
        answer = yield Read(tuple(("HGETALL", name) for name in names[start : start + PAGE]))
        rows += answer.raw
    return rows


def legible(
    read: Callable[[str, dict[str, str]], T], rows: Iterable[tuple[str, dict[str, str]]]
) -> Iterator[T]:
    """What each row says, by its name; one of no known form is passed over, and hides no other."""
    for name, row in rows:
        try:
            found = read(name, row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            _say_once(name, f"{type(error).__name__}: {error}")
        else:
            yield found


@lru_cache(PAGE)
def _say_once(name: str, why: str) -> None:
    # Eight letters of a token tell it from others and open nothing.
    log.warning("what the store has of %s… is not legible, and is passed over: %s", name[:8], why)


def _device(uuid: str, row: dict[str, str]) -> DeviceStatus:
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
        kept_for=row["kept_for"],
        used_mb=int(row["used_mb"]) if row.get("used_mb") else None,
        sampled_ms=int(row.get("sampled_ms", 0)),
        nvml_error=row.get("nvml_error") or None,
        telemetry={name: _measured(row.get(name)) for name in TELEMETRY},
        processes=_processes(row.get("processes", "")),
        unseen=row.get("unseen", ""),
        findings=tuple(
            Finding(kind, subject)
            for kind in FINDINGS
            for subject in filter(None, row.get(kind, "").split(","))
        ),
        quarantine=row.get("quarantine", ""),
        xid=int(row.get("xid") or 0),
        xid_ms=int(row.get("xid_ms") or 0),
        parent=row.get("parent", ""),
        finder=row.get("finder", ""),
        finder_ms=int(row.get("finder_ms") or 0),
        **{name: int(row[name]) for name in DEVICE_NUMBERS},
    )


def _processes(text: str) -> tuple[ProcessStatus, ...] | None:
    """Who uses a device; what is of no known form hides the device no more than what is unknown."""
    try:
        return tuple(map(_process, json.loads(text))) if text else None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _process(row: dict[str, Any]) -> ProcessStatus:
    """A process by the fields that this version knows."""
    memory_mb, busy_pct = row.get("memory_mb"), row.get("busy_pct")
    return ProcessStatus(
        pid=int(row["pid"]),
        memory_mb=None if memory_mb is None else int(memory_mb),
        name=str(row.get("name", "")),
        user=str(row.get("user", "")),
        token=str(row.get("token", "")),
        finding=str(row.get("finding", "")),
        since_ms=int(row.get("since_ms", 0)),
        busy_pct=None if busy_pct is None else float(busy_pct),
        start=int(row.get("start", 0)),
    )


def _measured(text: str | None) -> float | None:
    """What is no number in JSON either is as unknown as what is not there."""
    number = float(text or "nan")
    return number if math.isfinite(number) else None


def held(devices: str) -> tuple[tuple[str, int], ...]:
    """(device id, MiB) of each device in a record's `uuid=mb,...`."""
    parts = [part.rpartition("=") for part in devices.split(",") if part]
    return tuple((uuid, int(mb)) for uuid, _, mb in parts)


def lease_status(token: str, row: dict[str, str]) -> LeaseStatus:
    """A record's hash as a LeaseStatus. `request` is ARGV 4-13 of acquire, joined by `|`."""
    granted_at_ms, expires_at_ms = int(row["granted_at_ms"]), int(row["expires_at_ms"])
    asked = row["request"].split("|")
    return LeaseStatus(
        token=token,
        agent=row["agent"],
        state=row["state"],
        devices=held(row["devices"]),
        fence=int(row["fence"]),
        granted_at_ms=granted_at_ms,
        expires_at_ms=None if expires_at_ms - granted_at_ms > ENDLESS_MS else expires_at_ms,
        ttl_ms=int(row["ttl_ms"]),
        hold_until_ms=int(row["hold_until_ms"]) if "hold_until_ms" in row else None,
        revoked="revoked" in row,
        priority=int(asked[5]),
        asked_host=asked[6],
        reason=row.get("reason"),
        owner=row.get("owner", ""),
        client=row.get("client", ""),
        pid=row.get("pid", ""),
        notices=tuple(filter(None, row.get("notice", "").split(","))),
    )
