"""What is not as it should be on a GPU: leases unused or overused, processes without a lease.

A finding begins when its condition has held for its time, and ends with the condition.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from agent_sdk.state.devices import FINDINGS, Finding, ProcessStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent_sdk.state.holders import Holders
    from agent_sdk.state.snapshot import LeaseStatus, PoolStatus
    from broker.attribution.accounting import Account, Shares
    from broker.attribution.ownership import Belonging, Owners
    from broker.attribution.processes import Program
    from broker.devices import DeviceSample
    from broker.devices.sample import GpuProcess

log = logging.getLogger(__name__)

SYSTEM: Final = frozenset({
    "Xorg", "Xwayland", "gnome-shell", "kwin_wayland", "kwin_x11", "sway", "nvidia-persiste",
    "nv-hostengine", "nv-fabricmanage", "dcgm-exporter", "nvidia-cuda-mps", "nvidia-smi",
})  # fmt: skip
"""Programs that serve whoever uses the machine, by the fifteen letters that the kernel keeps."""

TELLING: Final = frozenset({"ok", "error", "quarantined", "dirty"})
"""States of a device of which something may be found; what was found on another is over."""

FAILED: Final = frozenset({"lost", "quarantined"})
"""States of a device whose leases are told."""

HEARING_MS: Final = 60_000
"""After a pool that lost its memory has opened, holders may still be on their way to it."""

AGAINST_WILL: Final = frozenset({"expired", "revoked"})
"""How a lease ends without its holder's word."""

MOST_ROWS: Final = 48
"""Processes of a device of which the pool is told, those that use most memory."""


@dataclass(frozen=True, slots=True)
class AttributedSample:
    """One sample, and what is known of the processes in it.

    Attributes:
        sampled_ms: when it was taken, on the pool's clock.
        states: of each device, as it is reported.
        belongings: the leases of each process, and how that is known.
    """

    sampled_ms: int
    devices: Mapping[str, DeviceSample]
    programs: Mapping[int, Program]
    owners: Owners
    shares: Mapping[str, Shares]
    accounts: Mapping[str, Account | None]
    holders: Holders
    states: Mapping[str, str]
    belongings: Mapping[int, Belonging]


@dataclass(slots=True)
class Found:
    """What was found on one device.

    Attributes:
        subjects: kind -> tokens or pids; a kind that cannot be told is not there.
        rows: its processes; None: it cannot tell.
        dirty: what a lease that is over has left on it, in a sentence; empty = nothing.
    """

    subjects: dict[str, list[str]] = field(default_factory=dict)
    rows: list[ProcessStatus] | None = None
    dirty: str = ""


@dataclass(frozen=True, slots=True)
class OpenFinding:
    """A finding that has stood for a while.

    Attributes:
        since_ms: when it began, on the pool's clock.
    """

    uuid: str
    finding: Finding
    since_ms: int


class Findings:
    """Compares one sample after the other.

    Attributes:
        standing: what is found now, oldest first.
    """

    def __init__(self) -> None:
        self._recalled = False
        self._idle_since: dict[str, int] = {}
        self._seen_since: dict[tuple[str, int, int], int] = {}
        self.standing: tuple[OpenFinding, ...] = ()

    def look(self, seen: AttributedSample, pool: PoolStatus) -> dict[str, Found]:
        """Return what is found on each device."""
        found = {uuid: Found() for uuid in seen.devices}
        self._recall(seen)
        hearing = seen.sampled_ms < pool.closed_until_ms + HEARING_MS
        self._processes(seen, pool, found, hearing=hearing)
        for uuid, device in found.items():
            account, active = seen.accounts[uuid], seen.shares[uuid].active
            if account is not None:
                over = account.over_mb.items()
                device.subjects["overuse"] = [t for t, mb in over if mb > pool.overuse_slack_mb]
            failed = seen.states[uuid] in FAILED
            device.subjects["degraded"] = [*active] if failed else []
            if seen.states[uuid] not in TELLING:
                device.subjects |= {kind: [] for kind in FINDINGS if kind not in device.subjects}
        for uuid, token in self._idle(seen, pool):
            found[uuid].subjects["idle"].append(token)
        self._stand(seen.sampled_ms, found, pool)
        return found

    def _recall(self, seen: AttributedSample) -> None:
        """Since when a reporter before us saw each process, as the pool has it."""
        if self._recalled:
            return
        self._recalled = True
        for uuid, device in seen.holders.devices.items():
            for row in device.processes or ():
                self._seen_since[uuid, row.pid, row.start] = row.since_ms

    def _processes(
        self, seen: AttributedSample, pool: PoolStatus, found: dict[str, Found], *, hearing: bool
    ) -> None:
        since: dict[tuple[str, int, int], int] = {}
        for uuid, device in seen.devices.items():
            if device.processes is None:
                continue
            for kind in ("squatter", "orphan", "idle"):
                found[uuid].subjects[kind] = []
            rows: list[ProcessStatus] = []
            for process in device.processes:
                program = seen.programs.get(process.pid)
                key = (uuid, process.pid, program.start if program else 0)
                since[key] = self._seen_since.get(key, seen.sampled_ms)
                row = _row(seen, uuid, process, program, since[key])
                if hearing:  # whose lease is forgotten may bring it back
                    row = replace(row, finding="")
                rows.append(row)
                if row.finding:
                    found[uuid].subjects[row.finding].append(str(row.pid))
                if row.finding == "orphan" and not found[uuid].dirty:
                    found[uuid].dirty = _dirt(seen, row, pool)
            rows.sort(key=lambda row: -(row.memory_mb or 0))
            found[uuid].rows = rows[:MOST_ROWS]
        self._seen_since = since

    def _idle(self, seen: AttributedSample, pool: PoolStatus) -> Iterator[tuple[str, str]]:
        """(device, token) of the leases that nobody has used for long enough."""
        since: dict[str, int] = {}
        for lease in seen.holders.leases.values():
            uuids = [uuid for uuid, _ in lease.devices]
            if (
                lease.state != "active"
                or not uuids
                or not all(_unused(seen, lease, uuid) for uuid in uuids)
            ):
                continue
            since[lease.token] = self._idle_since.get(lease.token, seen.sampled_ms)
            if seen.sampled_ms - since[lease.token] >= pool.idle_after_s * 1000:
                yield uuids[0], lease.token
        self._idle_since = since

    def _stand(self, now_ms: int, found: Mapping[str, Found], pool: PoolStatus) -> None:
        before = {(each.uuid, each.finding): each.since_ms for each in self.standing}
        now = [
            (uuid, Finding(kind, subject))
            for uuid, device in found.items()
            for kind, subjects in device.subjects.items()
            for subject in subjects
        ]
        standing = [OpenFinding(u, f, before.get((u, f), now_ms)) for u, f in now]
        self.standing = tuple(sorted(standing, key=lambda each: each.since_ms))
        for uuid, finding in now:
            if (uuid, finding) not in before:
                noted = actions(pool).get(finding.kind, "notify") != "observe"
                level = logging.WARNING if noted else logging.INFO
                log.log(level, "%s on %s: %s", finding.kind, uuid, finding.subject[:8])


def _row(
    seen: AttributedSample, uuid: str, process: GpuProcess, program: Program | None, since_ms: int
) -> ProcessStatus:
    """Return a process as the pool is told of it, with what is found of it."""
    shares = seen.shares[uuid]
    owners = seen.owners.get(process.pid, frozenset())
    here = owners & shares.active.keys()
    finding = ""
    settled = program is not None and since_ms < seen.sampled_ms  # not about to come, or to go
    if settled and not here and program is not None and program.name not in SYSTEM:
        finding = _without_lease(seen, uuid, owners)
    return ProcessStatus(
        pid=process.pid,
        memory_mb=process.memory_mb,
        name=program.name if program else "",
        user=program.user if program else "",
        token=min(here or owners, default=""),
        finding=finding,
        since_ms=since_ms,
        busy_pct=process.busy_pct,
        start=program.start if program else 0,
    )


def _without_lease(seen: AttributedSample, uuid: str, owners: frozenset[str]) -> str:
    """What a process is that no living lease on its device covers; empty: that cannot be told."""
    over = {token for token in owners if _ended(seen, token) is not None}
    if over and over == owners:
        return "orphan"
    # Over, but only since the sample: the next one tells.
    if any(token in seen.holders.ended or token in seen.shares[uuid].cooling for token in owners):
        return ""
    # It may be of a lease whose own processes have yet to be seen.
    shares = seen.shares[uuid]
    doubtful = shares.unattributed | (shares.unseen & shares.active.keys())
    return "" if doubtful or uuid in seen.holders.unsure else "squatter"


def _ended(seen: AttributedSample, token: str) -> tuple[str, int] | None:
    """Return how a lease ended before the sample, and when, ms; None: it had not."""
    lease = seen.holders.leases.get(token)
    if lease is not None:
        cooling = lease.state == "cooling" and lease.expires_at_ms is not None
        at_ms = lease.expires_at_ms if cooling else None
        outcome = "expired"
    elif (end := seen.holders.ended.get(token)) is not None:
        at_ms, outcome = end.at_ms, end.outcome
    elif token in seen.holders.elsewhere:
        at_ms, outcome = None, ""
    else:
        at_ms, outcome = 0, ""  # so long ago that nobody knows
    return (outcome, at_ms) if at_ms is not None and at_ms < seen.sampled_ms else None


def _dirt(seen: AttributedSample, row: ProcessStatus, pool: PoolStatus) -> str:
    """What an orphan holds on to after its lease's grace; empty when its holder gave it back."""
    for token in seen.owners.get(row.pid, frozenset()):
        outcome, at_ms = _ended(seen, token) or ("", 0)
        after_s = (seen.sampled_ms - at_ms) / 1000
        if outcome in AGAINST_WILL and after_s > pool.expiry_grace_s and row.memory_mb != 0:
            held = "memory" if row.memory_mb is None else f"{row.memory_mb:,} MiB"
            return (
                f"process {row.pid} ({row.name}, {row.user}) of lease {token[:8]}, which {outcome}"
                f" {after_s:.0f} s ago, still holds {held}: end it"
            ).replace("which revoked", "which was revoked")
    return ""


def _unused(seen: AttributedSample, lease: LeaseStatus, uuid: str) -> bool:
    """Return whether nothing of a lease's works on a device of it, as far as can be seen."""
    device = seen.devices.get(uuid)
    if device is None or device.processes is None or seen.states[uuid] in FAILED:
        return False
    unknown = lease.token in seen.shares[uuid].unattributed | seen.shares[uuid].unseen
    return not any(
        _works(device, process)
        for process in device.processes
        if lease.token in (owners := seen.owners.get(process.pid, frozenset()))
        or (unknown and not owners)
    )


def _works(device: DeviceSample, process: GpuProcess) -> bool:
    """Return whether a process computes.

    Where none is said to, on a GPU that is busy all the same, that may be wrong.
    """
    told = [each.busy_pct for each in device.processes or ()]
    busy = process.busy_pct if any(told) else device.utilization_gpu_pct
    return busy is None or busy > 0


def actions(pool: PoolStatus) -> dict[str, str]:
    """Return what the policy makes of each finding; there is none for what is always told."""
    return {
        "idle": pool.idle_action,
        "overuse": pool.overuse_action,
        "squatter": pool.squatter_action,
        "orphan": pool.orphan_action,
    }


def notices(
    standing: Iterable[OpenFinding], leases: Mapping[str, LeaseStatus], pool: PoolStatus
) -> dict[str, tuple[str, ...]]:
    """What the holder of each lease is to be told, of those who are told something else now."""
    heard = {"degraded"} | {kind for kind, what in actions(pool).items() if what != "observe"}
    wanted: dict[str, set[str]] = {token: set() for token in leases}
    for each in standing:
        if each.finding.kind in heard and each.finding.subject in wanted:
            wanted[each.finding.subject].add(each.finding.kind)
    told = {token: tuple(sorted(kinds)) for token, kinds in wanted.items()}
    return {
        token: kinds
        for token, kinds in told.items()
        if leases[token].state == "active" and kinds != tuple(sorted(leases[token].notices))
    }
