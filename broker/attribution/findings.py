"""Findings on a GPU: leases unused or overused, processes without a lease.

A finding begins when its condition has held for its time, and ends with the condition.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from agent_sdk.state.devices import Finding, ProcessStatus
from agent_sdk.state.finding_kinds import KINDS, OF_PROCESS
from broker.attribution.idleness import unused

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
"""Programs that serve every user of the machine, by the fifteen letters that the kernel keeps."""

TELLING: Final = frozenset({"ok", "error", "quarantined", "dirty"})
"""States of a device that allow findings; in any other state its findings are over."""

FAILED: Final = frozenset({"lost", "quarantined"})
"""States of a device that are a finding for its leases."""

HEARING_MS: Final = 60_000
"""Time after the opening of a pool with data loss: holders may still be about to recover leases."""

AGAINST_WILL: Final = frozenset({"expired", "revoked", "preempted"})
"""Outcomes of leases that ended without their holder's word."""

MOST_ROWS: Final = 48
"""Most processes of a device that the pool is told; those with most memory."""


@dataclass(frozen=True, slots=True)
class AttributedSample:
    """One sample, with the facts known about its processes.

    Attributes:
        sampled_ms: the time of the sample, on the pool's clock.
        states: the reported state of each device.
        belongings: the leases of each process, and the proof of it.
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
    """Findings on one device.

    Attributes:
        subjects: kind -> tokens or pids; a kind that cannot be told yet is missing.
        rows: the device's processes; None: they cannot be told.
        dirty: a sentence about the leftovers of an ended lease; empty: there are none.
    """

    subjects: dict[str, list[str]] = field(default_factory=dict)
    rows: list[ProcessStatus] | None = None
    dirty: str = ""


@dataclass(frozen=True, slots=True)
class OpenFinding:
    """Finding that stands, with its age.

    Attributes:
        since_ms: its begin, on the pool's clock.
    """

    uuid: str
    finding: Finding
    since_ms: int


class Findings:
    """Findings over successive samples.

    Attributes:
        standing: the present findings, oldest first.
    """

    def __init__(self) -> None:
        self._recalled = False
        self._doubted: frozenset[str] = frozenset()
        self._idle_since: dict[str, int] = {}
        self._seen_since: dict[tuple[str, int, int], int] = {}
        self.standing: tuple[OpenFinding, ...] = ()

    def look(self, seen: AttributedSample, pool: PoolStatus) -> dict[str, Found]:
        """Return the findings on each device."""
        found = {uuid: Found() for uuid in seen.devices}
        self._recall(seen)
        hearing = seen.sampled_ms < pool.closed_until_ms + HEARING_MS
        self._processes(seen, pool, found, hearing=hearing)
        for uuid, device in found.items():
            account, active = seen.accounts[uuid], seen.shares[uuid].active
            if account is not None:
                over = account.over_mb.items()
                device.subjects["overuse"] = [t for t, mb in over if mb > pool.overuse_slack_mb]
            elif uuid in self._doubted and seen.devices[uuid].unseen:
                device.subjects["overuse"] = []
            failed = seen.states[uuid] in FAILED
            device.subjects["degraded"] = [*active] if failed else []
            if seen.states[uuid] not in TELLING:
                device.subjects |= {kind: [] for kind in KINDS if kind not in device.subjects}
        for uuid, token in self._idle(seen, pool):
            found[uuid].subjects["idle"].append(token)
        self._doubted = frozenset(uuid for uuid, device in seen.devices.items() if device.unseen)
        self._stand(seen.sampled_ms, found, pool)
        return found

    def _recall(self, seen: AttributedSample) -> None:
        """Take over from the pool since when an earlier reporter has seen each process."""
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
            if device.processes is not None or (device.unseen and uuid in self._doubted):
                found[uuid].subjects = {kind: [] for kind in (*OF_PROCESS, "idle")}
            if device.processes is None:
                continue
            rows: list[ProcessStatus] = []
            for process in device.processes:
                program = seen.programs.get(process.pid)
                key = (uuid, process.pid, program.start if program else 0)
                since[key] = self._seen_since.get(key, seen.sampled_ms)
                row = _row(seen, uuid, process, program, since[key])
                if row.finding == "squatter" and _of_a_desktop(process, pool):
                    row = replace(row, finding="")
                if hearing:  # a forgotten lease may be recovered
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
        """Yield (device, token) of the leases that no process has used for long enough."""
        since: dict[str, int] = {}
        for lease in seen.holders.leases.values():
            uuids = [uuid for uuid, _ in lease.devices]
            if (
                lease.state != "active"
                or not uuids
                or any(seen.states.get(uuid) in FAILED for uuid in uuids)
                or not all(unused(seen, lease, uuid) for uuid in uuids)
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
    """Return a process in the form that the pool is told, with its finding."""
    shares = seen.shares[uuid]
    owners = seen.owners.get(process.pid, frozenset())
    here = owners & shares.active.keys()
    finding = ""
    settled = program is not None and since_ms < seen.sampled_ms  # neither starting nor ending
    exempt = process.graphics_only or program is None or program.name in SYSTEM
    if settled and not here and not exempt:
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
        graphics_only=process.graphics_only,
        start=program.start if program else 0,
    )


def _of_a_desktop(process: GpuProcess, pool: PoolStatus) -> bool:
    """Tell whether a process may be a desktop's: it draws, and uses no more than these may."""
    return process.draws and (process.memory_mb or 0) <= pool.idle_foreign_mb


def _without_lease(seen: AttributedSample, uuid: str, owners: frozenset[str]) -> str:
    """Return the finding of a process without a living lease on its device.

    Empty: it cannot be told.
    """
    over = {token for token in owners if _ended(seen, token) is not None}
    if over and over == owners:
        return "orphan"
    # Ended, but only since the sample: the next one tells.
    if any(token in seen.holders.ended or token in seen.shares[uuid].cooling for token in owners):
        return ""
    # It may belong to a lease with processes that have yet to be seen.
    shares = seen.shares[uuid]
    doubtful = shares.unattributed | (shares.unseen & shares.active.keys())
    unsure = seen.devices[uuid].unseen or uuid in seen.holders.unsure
    return "" if doubtful or unsure else "squatter"


def _ended(seen: AttributedSample, token: str) -> tuple[str, int] | None:
    """Return a lease's outcome and its end, ms, if it ended before the sample; else None."""
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
        at_ms, outcome = 0, ""  # so long ago that no record is left
    return (outcome, at_ms) if at_ms is not None and at_ms < seen.sampled_ms else None


def _dirt(seen: AttributedSample, row: ProcessStatus, pool: PoolStatus) -> str:
    """Return a sentence about the memory that an orphan still holds after its lease's grace.

    Empty when its holder gave the lease back.
    """
    for token in sorted(seen.owners.get(row.pid, frozenset())):
        outcome, at_ms = _ended(seen, token) or ("", 0)
        after_s = (seen.sampled_ms - at_ms) / 1000
        if outcome in AGAINST_WILL and after_s > pool.expiry_grace_s and row.memory_mb != 0:
            held = "memory" if row.memory_mb is None else f"{row.memory_mb:,} MiB"
            return (
                f"process {row.pid} ({row.name}, {row.user}) of lease {token[:8]}, which {outcome}"
                f" {after_s:.0f} s ago, still holds {held}: end it"
            ).replace("which revoked", "which was revoked")
    return ""


def actions(pool: PoolStatus) -> dict[str, str]:
    """Return the policy's action for each kind of finding; a kind that is always told has none."""
    return {
        word: getattr(pool, f"{word}_action") for word, kind in KINDS.items() if kind.enforceable
    }


def notices(
    standing: Iterable[OpenFinding], leases: Mapping[str, LeaseStatus], pool: PoolStatus
) -> dict[str, tuple[str, ...]]:
    """Return the notices of each lease whose holder must be told something new."""
    heard = {word for word in KINDS if actions(pool).get(word, "notify") != "observe"}
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
