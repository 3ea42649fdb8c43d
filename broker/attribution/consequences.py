"""Consequences of findings by the policy: leases to revoke, processes to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_sdk.state.finding_kinds import KINDS, OF_LEASE, OF_PROCESS
from broker.attribution.enforcement import KillTarget
from broker.attribution.findings import actions
from broker.attribution.ownership import UNOWNED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent_sdk.state.holders import Holders
    from agent_sdk.state.snapshot import PoolStatus
    from broker.attribution.findings import AttributedSample, OpenFinding


@dataclass(frozen=True, slots=True)
class Revocation:
    """Lease that is to end, with the reason."""

    token: str
    why: str


def revocations(
    standing: Iterable[OpenFinding], now_ms: int, pool: PoolStatus, holders: Holders
) -> Iterator[Revocation]:
    """Yield the leases with findings that have stood for longer than the policy allows."""
    for each in standing:
        lease = holders.leases.get(each.finding.subject)
        known = lease is not None and not lease.revoked
        if known and each.finding.kind in OF_LEASE and _unbearable(each, now_ms, pool):
            yield Revocation(each.finding.subject, KINDS[each.finding.kind].because)


def _unbearable(each: OpenFinding, now_ms: int, pool: PoolStatus) -> bool:
    enforced = actions(pool).get(each.finding.kind) == "enforce"
    return enforced and now_ms - each.since_ms >= pool.enforce_after_s * 1000


def condemned(
    standing: Iterable[OpenFinding], seen: AttributedSample, pool: PoolStatus
) -> Iterator[KillTarget]:
    """Yield the processes with findings that have stood for longer than the policy allows.

    A process of a living lease, by any path, is spared. So is an orphan without proof that it
    held the ended lease: any client may have registered its pid. So is a squatter that draws, too:
    it may be a desktop's, as a browser that decodes video, however much it uses.
    """
    for each in standing:
        kind, subject = each.finding.kind, each.finding.subject
        if kind not in OF_PROCESS or not _unbearable(each, seen.sampled_ms, pool):
            continue
        whose = seen.belongings.get(int(subject), UNOWNED)
        if kind == "squatter" and _draws(each, seen):
            continue
        if whose.living or (kind == "orphan" and not whose.owners <= whose.proven):
            continue
        if (program := seen.programs.get(int(subject))) is not None:
            token = min(whose.owners, default="")
            yield KillTarget(each.uuid, program, token, f"{kind}: {KINDS[kind].because}")


def _draws(each: OpenFinding, seen: AttributedSample) -> bool:
    pid, device = int(each.finding.subject), seen.devices.get(each.uuid)
    processes = device.processes if device is not None else None
    return any(process.draws and process.pid == pid for process in processes or ())


def over_using(seen: AttributedSample, pool: PoolStatus) -> Iterator[KillTarget]:
    """Yield, on a device nearly out of memory, the largest process of the worst overuse.

    Nearly out: less is left than `system_mb`. Only a process that is proven to be of such a
    lease counts, and only if it belongs to no other living lease, by any path.
    """
    for uuid, device in seen.devices.items():
        account = seen.accounts[uuid]
        over = {} if account is None else account.over_mb
        over = {token: mb for token, mb in over.items() if mb > pool.overuse_slack_mb}
        if not pool.kill_on_oom or not over:
            continue
        if (device.used_mb or 0) <= (device.total_mb or 0) - device.system_mb:
            continue
        for token, over_mb in sorted(over.items(), key=lambda each: -each[1]):
            theirs = [
                (process.memory_mb or 0, seen.programs[process.pid])
                for process in device.processes or ()
                if process.pid in seen.programs
                and token in (whose := seen.belongings.get(process.pid, UNOWNED)).proven
                and whose.living <= over.keys()
            ]
            if theirs:
                _, program = max(theirs, key=lambda each: each[0])
                why = f"out of memory: its lease uses {over_mb} MiB more than it holds"
                yield KillTarget(uuid, program, token, why)
                break
