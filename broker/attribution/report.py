"""Report of a host's sample: each device's state, its processes, and its findings."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from agent_sdk.state.devices import ProcessStatus
from agent_sdk.state.finding_kinds import KINDS
from broker.attribution.accounting import account, shares_on
from broker.attribution.consequences import Revocation, condemned, over_using, revocations
from broker.attribution.findings import (
    HEARING_MS,
    AttributedSample,
    Findings,
    Found,
    notices,
)
from broker.attribution.health import Health
from broker.attribution.lease_use import LeaseUse
from broker.attribution.ownership import Matcher
from broker.attribution.terms import FORBIDDEN, idle_unleased_mb, on_terms
from broker.attribution.visibility import visible
from broker.devices import DeviceSample
from broker.devices.numbers import numbers_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.holders import Holders
    from agent_sdk.state.snapshot import PoolStatus
    from broker.attribution.accounting import Account
    from broker.attribution.enforcement import KillTarget
    from broker.attribution.findings import OpenFinding
    from broker.attribution.health import Verdict
    from broker.attribution.processes import Programs
    from broker.attribution.sampler import HostSample

MOST_GONE: Final = 100

LINE: Final = 256
NAMES: Final = 7_900
ROWS: Final = 16_000
COOLING: Final = 4_000
"""Most bytes of each field that the verb takes; see the forms in `lua/report.lua`."""

FINDER_MS: Final = 20_000
"""Silence of the reporter that names a host's findings, after which another one takes over."""

GAP_LOOKS: Final = 3
"""Looks that may be missed before nothing is known of the time between."""

LINES: Final = ("name", "reason", "unseen", "one_lease", "nvml_error", "quarantine")

ROW: Final = tuple(field.name for field in fields(ProcessStatus))
ROW_OF: Final = attrgetter(*ROW)
"""Fields of a process, and their values: `asdict` takes five times as long."""

RARE: Final = "graphics_only"
"""Field of a process that is told only where it says something."""

SILENT: Final = frozenset(
    {"uuid", "processes", "xids", "state", "reason", "compute_mode", "energy_mj"}
)
"""Fields of a sample that the report states in another form."""

TOLD: Final = tuple(each.name for each in fields(DeviceSample) if each.name not in SILENT)
"""Fields of a sample that the report states as they are."""


@dataclass(frozen=True, slots=True)
class HostReport:
    """Result of one look.

    Attributes:
        reports: device -> the reported fields.
        revoke: leases that the policy ends.
        end: processes that the policy ends.
    """

    reports: dict[str, dict[str, str]]
    revoke: list[Revocation] = field(default_factory=list)
    end: list[KillTarget] = field(default_factory=list)


class ReportBuilder:
    """Builder of one report after the other.

    Args:
        report_s: seconds between two looks, if none is late.
    """

    def __init__(self, system: Programs, report_s: float = 5.0) -> None:
        self._me = uuid4().hex[:8]
        self._matcher = Matcher(system)
        self._findings = Findings()
        self._health = Health()
        self._use = LeaseUse(round(GAP_LOOKS * report_s * 1000))
        self._absent = frozenset[int]()

    @property
    def perhaps_over(self) -> frozenset[str]:
        """Tokens whose end is to be asked for."""
        return self._matcher.remembered

    @property
    def hurries(self) -> bool:
        """True while more is to be told, and soon."""
        return self._use.hurries

    def told(self) -> None:
        """Note that the pool has the last report."""
        self._use.told()
        self._health.told()

    def reckon(self, look: HostSample, holders: Holders, pool: PoolStatus) -> HostReport:
        """Return the report of a look, with the leases and processes to end."""
        now = time.monotonic()
        self._matcher.recall(holders.devices.values(), now)
        absent = self._absent_twice(look)
        devices = {
            d.uuid: on_terms(visible(d, look.unseen, pool.idle_foreign_mb, absent), look.programs)
            for d in look.sample.devices
        }
        verdicts = {
            uuid: self._health.judge(
                device,
                devices.get(device.parent, device),
                holders.devices.get(uuid) or holders.devices.get(device.parent),
                pool.xid_actions,
                now,
                look.sample.driver_version,
            )
            for uuid, device in devices.items()
        }
        owners = self._matcher.match(look.programs, holders, now)
        shares = {
            uuid: shares_on(
                uuid,
                [holders.leases[t] for t in holders.of.get(uuid, ()) if t in holders.leases],
                self._matcher,
                look.sampled_ms,
                holders.devices[uuid].exclusive if uuid in holders.devices else "",
            )
            for uuid in devices
        }
        accounts = {
            uuid: None
            if device.unseen or uuid in holders.unsure
            else account(device, owners, shares[uuid])
            for uuid, device in devices.items()
        }
        states = {uuid: verdict.state for uuid, verdict in verdicts.items()}
        seen = AttributedSample(
            look.sampled_ms,
            devices,
            look.programs,
            owners,
            shares,
            accounts,
            holders,
            states,
            self._matcher.belongings,
        )
        found = self._findings.look(seen, pool)
        reports = {
            uuid: _report(device, verdicts[uuid], accounts[uuid], found[uuid], pool)
            for uuid, device in devices.items()
        }
        for uuid, number in numbers_of(look.sample.devices).items():
            reports[uuid]["runtime_id"] = number
        for uuid, gone in holders.gone.items():
            if gone and uuid in reports:
                reports[uuid]["gone"] = ",".join(gone[:MOST_GONE])
        if self._another_finds(holders, look.sampled_ms):
            self._use.rest()
            return HostReport({uuid: _without_findings(said) for uuid, said in reports.items()})
        for said in reports.values():
            if said["processes"]:
                said |= {"finder": self._me, "finder_ms": str(look.sampled_ms)}
        for uuid, text in self._use.look(seen, pool.epoch).items():
            reports[uuid]["use"] = text
        standing = self._findings.standing
        self._tell(reports, standing, holders, pool)
        if look.sampled_ms < pool.closed_until_ms + HEARING_MS:
            return HostReport(reports)
        revoke = list(revocations(standing, look.sampled_ms, pool, holders))
        end = [*condemned(standing, seen, pool), *over_using(seen, pool)]
        return HostReport(reports, revoke, end)

    def _absent_twice(self, look: HostSample) -> frozenset[int]:
        """Return the pids that a driver names, and that are no process here, now or before."""
        named = {process.pid for d in look.sample.devices for process in d.processes or ()}
        absent = frozenset() if look.unseen else frozenset(named - look.programs.keys())
        twice, self._absent = absent & self._absent, absent
        return twice

    def _another_finds(self, holders: Holders, now_ms: int) -> bool:
        """Return whether another reporter of this host names findings: two would disagree."""
        return any(
            device.finder not in {"", self._me} and now_ms < device.finder_ms + FINDER_MS
            for device in holders.devices.values()
        )

    def _tell(
        self,
        reports: dict[str, dict[str, str]],
        standing: Iterable[OpenFinding],
        holders: Holders,
        pool: PoolStatus,
    ) -> None:
        """Add the notices of each lease's holder to the report of the lease's first device."""
        for token, kinds in notices(standing, holders.leases, pool).items():
            uuid = next((u for u, _ in holders.leases[token].devices if u in reports), None)
            if uuid is not None:
                said = [reports[uuid].get("tell", ""), f"{token}={'+'.join(kinds)}"]
                # a token without room comes with the next look
                reports[uuid]["tell"] = names(said)


def _report(
    device: DeviceSample, verdict: Verdict, account: Account | None, found: Found, pool: PoolStatus
) -> dict[str, str]:
    """Return a device's fields in the verb's form; an unknown value is empty, never 0."""
    state, reason = verdict.state, verdict.reason
    if state == "ok" and device.compute_mode == "prohibited":
        state, reason = "prohibited", FORBIDDEN
    if found.dirty and state == "ok":
        state, reason = "dirty", found.dirty
    said = {name: _text(getattr(device, name)) for name in TOLD}
    said |= {"state": state, "reason": reason}
    if device.total_mb is None:  # of an unknown total nothing is set aside: the pool's word stands
        said["system_mb"] = ""
    said["idle_unleased_mb"] = str(idle_unleased_mb(device, pool.idle_foreign_mb))
    said["processes"] = _rows_text(found)
    for name in (
        "reported_unleased_mb",
        "unattributed_mb",
        "cooling_used_mb",
        "cooling_unattributed_mb",
    ):
        said[name] = _text(getattr(account, name, None))
    said["cooling"] = _cooling(account)
    said |= {kind: names(sorted(subjects)) for kind, subjects in found.subjects.items()}
    if verdict.quarantine is not None:
        said["quarantine"] = verdict.quarantine
    if verdict.xids:
        said["xids"] = verdict.xids
    return said | {name: line(said[name]) for name in LINES if name in said}


def line(text: str) -> str:
    """Return a text in the verb's form of a line: no control characters, at most 256 bytes."""
    if len(text) <= LINE and text.isascii() and text.isprintable():  # nearly always
        return text
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return plain.encode(errors="replace")[:LINE].decode(errors="ignore")


def _cooling(account: Account | None) -> str:
    """Return each cooling lease's use; without room for all, the sums alone remain."""
    each = account.cooling.items() if account else ()
    return names((f"{token}={':'.join(map(str, said))}" for token, said in each), COOLING)


def names(found: Iterable[str], room: int = NAMES) -> str:
    """Return as many of the names as a list has room for, in bytes."""
    kept, size = [], 0
    for name in filter(None, found):
        size += len(name) + 1
        if size > room:
            break
        kept.append(name)
    return ",".join(kept)


def _without_findings(said: dict[str, str]) -> dict[str, str]:
    """Return a device's fields without its findings."""
    return {name: value for name, value in said.items() if name not in KINDS}


def _rows_text(found: Found) -> str:
    """Return the processes of a device in the pool's form; empty: they cannot be told."""
    if found.rows is None:
        return ""
    rows = [
        {name: value for name, value in zip(ROW, ROW_OF(row), strict=True) if value or name != RARE}
        for row in found.rows
    ]
    while len(said := json.dumps(rows, separators=(",", ":"))) > ROWS:
        rows.pop()
    return said


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(int(value)) if isinstance(value, bool) else str(value)
