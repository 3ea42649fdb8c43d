"""What a host reports of a sample: each device as it is, who uses it, and what was found."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final

from broker.truth.account import account, shares_on
from broker.truth.ending import Condemned
from broker.truth.findings import Findings, Found, Seen, actions, notices
from broker.truth.health import Health
from broker.truth.match import Matcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent_sdk.holders import Holders
    from agent_sdk.snapshot import PoolStatus
    from broker.devices import DeviceSample
    from broker.truth.account import Account
    from broker.truth.findings import Standing
    from broker.truth.health import Verdict
    from broker.truth.looking import Look
    from broker.truth.programs import Programs

MOST_GONE: Final = 100

SILENT: Final = frozenset({"uuid", "processes", "xids", "state", "reason"})
"""Of a sample, what is told otherwise."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A lease that is to end, and why."""

    token: str
    why: str


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What comes of a look.

    Attributes:
        reports: device -> what is said of it.
        revoke: leases that the policy ends.
        end: processes that the policy ends.
    """

    reports: dict[str, dict[str, str]]
    revoke: list[Revocation] = field(default_factory=list)
    end: list[Condemned] = field(default_factory=list)


class Reckoner:
    """Reckons one look after the other."""

    def __init__(self, system: Programs) -> None:
        self._system = system
        self._matcher = Matcher()
        self._findings = Findings()
        self._health = Health()

    @property
    def perhaps_over(self) -> frozenset[str]:
        """Leases of which to ask how they ended."""
        return self._matcher.remembered

    def reckon(self, look: Look, holders: Holders, pool: PoolStatus) -> Reckoning:
        """What to report of a look, and what to do."""
        devices = {d.uuid: _visible(d, look) for d in look.sample.devices}
        verdicts = {
            uuid: self._health.judge(
                device,
                devices.get(device.parent, device),
                holders.devices.get(uuid),
                pool.xid_actions,
                time.monotonic(),
            )
            for uuid, device in devices.items()
        }
        owners = self._matcher.match(look.programs, holders.leases, holders.ended, self._system)
        shares = {
            uuid: shares_on(
                uuid,
                [holders.leases[t] for t in holders.of.get(uuid, ()) if t in holders.leases],
                self._matcher.claimed,
                look.sampled_ms,
            )
            for uuid in devices
        }
        accounts = {
            uuid: None if uuid in holders.unsure else account(device, owners, shares[uuid])
            for uuid, device in devices.items()
        }
        states = {uuid: verdict.state for uuid, verdict in verdicts.items()}
        seen = Seen(
            look.sampled_ms, devices, look.programs, owners, shares, accounts, holders, states
        )
        found = self._findings.look(seen, pool)
        reports = {
            uuid: _report(device, verdicts[uuid], accounts[uuid], found[uuid], look.unseen)
            for uuid, device in devices.items()
        }
        for uuid, gone in holders.gone.items():
            if gone and uuid in reports:
                reports[uuid]["gone"] = ",".join(gone[:MOST_GONE])
        standing = self._findings.standing
        self._tell(reports, standing, holders, pool)
        revoke = list(_revocations(standing, look.sampled_ms, pool))
        end = [*_condemned(standing, seen, pool), *_over_using(seen, pool)]
        return Reckoning(reports, revoke, end)

    def _tell(
        self,
        reports: dict[str, dict[str, str]],
        standing: Iterable[Standing],
        holders: Holders,
        pool: PoolStatus,
    ) -> None:
        """Add to the first device of each lease what its holder is to be told."""
        for token, kinds in notices(standing, holders.leases, pool).items():
            uuid = next((u for u, _ in holders.leases[token].devices if u in reports), None)
            if uuid is not None:
                said = reports[uuid].setdefault("tell", "")
                reports[uuid]["tell"] = f"{said},{token}={'+'.join(kinds)}".lstrip(",")


def _visible(device: DeviceSample, look: Look) -> DeviceSample:
    """The device, without processes whose pids mean nothing here."""
    return replace(device, processes=None) if look.unseen else device


def _report(
    device: DeviceSample, verdict: Verdict, account: Account | None, found: Found, unseen: str
) -> dict[str, str]:
    """A device's fields as the verb takes them; what cannot be told is empty, never 0."""
    state, reason = verdict.state, verdict.reason
    if found.dirty and state == "ok":
        state, reason = "dirty", found.dirty
    said = {f.name: _text(getattr(device, f.name)) for f in fields(device) if f.name not in SILENT}
    said |= {"state": state, "reason": reason[:256], "unseen": unseen}
    said["processes"] = _rows_text(found)
    for name in ("outside_mb", "unclaimed_mb", "lingering_mb", "uncertain_mb"):
        said[name] = _text(getattr(account, name, None))
    said |= {kind: ",".join(sorted(subjects)) for kind, subjects in found.subjects.items()}
    if verdict.quarantine is not None:
        said["quarantine"] = verdict.quarantine
    if verdict.xids:
        said["xids"] = verdict.xids
    return said


def _rows_text(found: Found) -> str:
    """The processes of a device as the pool keeps them; empty = it cannot tell."""
    if found.rows is None:
        return ""
    return json.dumps([asdict(row) for row in found.rows], separators=(",", ":"))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _revocations(
    standing: Iterable[Standing], now_ms: int, pool: PoolStatus
) -> Iterator[Revocation]:
    """The leases whose finding has stood for longer than the policy bears it."""
    said = {"idle": "nobody used its GPU", "overuse": "its processes use more than it holds"}
    for each in standing:
        if each.finding.kind in said and _unbearable(each, now_ms, pool):
            yield Revocation(each.finding.subject, said[each.finding.kind])


def _unbearable(each: Standing, now_ms: int, pool: PoolStatus) -> bool:
    enforced = actions(pool).get(each.finding.kind) == "enforce"
    return enforced and now_ms - each.since_ms >= pool.enforce_after_s * 1000


def _condemned(standing: Iterable[Standing], seen: Seen, pool: PoolStatus) -> Iterator[Condemned]:
    """The processes whose finding has stood for longer than the policy bears it."""
    said = {"squatter": "it has no lease", "orphan": "its lease is over"}
    for each in standing:
        kind, subject = each.finding.kind, each.finding.subject
        if kind not in said or not _unbearable(each, seen.sampled_ms, pool):
            continue
        if (program := seen.programs.get(int(subject))) is not None:
            token = min(seen.owners.get(program.pid, ()), default="")
            yield Condemned(each.uuid, program, token, f"{kind}: {said[kind]}")


def _over_using(seen: Seen, pool: PoolStatus) -> Iterator[Condemned]:
    """On a device nearly out of memory, the largest process of who uses most beyond a lease.

    Nearly out is when less is left than no lease may take.
    """
    for uuid, device in seen.devices.items():
        account = seen.accounts[uuid]
        if not pool.kill_on_oom or account is None or not account.over_mb:
            continue
        if (device.used_mb or 0) <= (device.total_mb or 0) - device.reserve_mb:
            continue
        token, over_mb = max(account.over_mb.items(), key=lambda each: each[1])
        theirs = [
            (process.memory_mb or 0, seen.programs[process.pid])
            for process in device.processes or ()
            if process.pid in seen.programs and token in seen.owners.get(process.pid, ())
        ]
        if theirs:
            _, program = max(theirs, key=lambda each: each[0])
            why = f"out of memory: its lease uses {over_mb} MiB more than it holds"
            yield Condemned(uuid, program, token, why)
