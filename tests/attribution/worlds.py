"""Made-up samples, leases and processes, for tests of what a host makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent_sdk.state import devices
from agent_sdk.state.holders import Holders
from agent_sdk.state.snapshot import LeaseStatus, PoolStatus, lease_status, legible
from broker.attribution.processes import Program, Programs
from broker.attribution.report import HostReport, ReportBuilder
from broker.attribution.sampler import HostSample
from broker.devices import DeviceSample, Sample

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus
    from broker.devices.sample import GpuProcess

GPU = "GPU-a"

POOL = PoolStatus(
    now_ms=0, ready=True, epoch="1", policy_version=1, safe_mode=False,
    max_memory_per_agent_mb=1_000_000, allow_fractional_shares=True, kill_on_oom=False,
    default_memory_mb=2048, expiry_grace_s=5, max_leases_per_agent=256, max_waiters_per_agent=256,
    idle_action="observe", overuse_action="observe", squatter_action="observe",
    orphan_action="observe", idle_after_s=600, enforce_after_s=60, overuse_slack_mb=100,
    xid_actions="", reservation_idle_s=60, closed_until_ms=0, waiting=0, stats={},
)  # fmt: skip


def gpu(*processes: GpuProcess, uuid: str = GPU, **more: Any) -> DeviceSample:
    """A GPU of 10,000 MiB whose memory is used by these processes alone."""
    known = [process.memory_mb or 0 for process in processes]
    fields: dict[str, Any] = {
        "index": 0, "name": "H100", "model": "H100", "total_mb": 10_000, "system_mb": 300,
        "used_mb": sum(known), "utilization_gpu_pct": 0.0, "processes": processes,
    }  # fmt: skip
    return DeviceSample(uuid=uuid, **(fields | more))


def program(
    pid: int, *ancestors: int, token: str = "", name: str = "python3", inherited: str = ""
) -> Program:
    """A process, started at its pid, with its ancestors."""
    pids = (pid, *ancestors)
    line = tuple(f"{each}:{each}" for each in pids)
    return Program(pid, pid, name, "user", token, line, pids, frozenset({inherited} - {""}))


def lease(
    token: str, memory_mb: int, pid: int | None, *, uuid: str = GPU, **more: Any
) -> LeaseStatus:
    """A lease of an agent whose process is `pid`; None: it registered none."""
    row = {
        "state": "active", "agent": "agent", "devices": f"{uuid}={memory_mb}", "fence": "1",
        "granted_at_ms": "1", "expires_at_ms": "99999", "ttl_ms": "30000",
        "request": "900|1|0|30000|0|0|*|*|spread|refuse", "pid": f"{pid}:{pid}" if pid else "",
    }  # fmt: skip
    return lease_status(token, row | {name: str(value) for name, value in more.items()})


def device_status(**more: Any) -> DeviceStatus:
    """The GPU as the pool knows it."""
    row = {
        "index": "0", "host": "h1", "name": "H100", "model": "H100", "state": "ok", "drained": "0",
        "exclusive": "", "reserved_for": "", "total_mb": "10000", "system_mb": "300",
        "leased_mb": "0", "withheld_mb": "0", "unleased_mb": "0", "leases": "0",
    }  # fmt: skip
    said = row | {name: str(value) for name, value in more.items()}
    (found,) = legible(devices.device_status, [(GPU, said)])
    return found


def holders(*leases: LeaseStatus, devices: tuple[DeviceStatus, ...] = (), **more: Any) -> Holders:
    """Return the holders of each device."""
    of: dict[str, tuple[str, ...]] = {}
    for each in leases:
        for uuid, _ in each.devices:
            of[uuid] = (*of.get(uuid, ()), each.token)
    found = Holders(
        0,
        {d.uuid: d for d in devices},
        {x.token: x for x in leases},
        of,
        frozenset(),
        {},
        {},
        frozenset(),
    )
    return replace(found, **more)


class Nobody(Programs):
    """A system in which only these `pid:start` live.

    Attributes:
        shown: what a process shows of any lease: True, False, or None: it cannot be looked into.
    """

    def __init__(self, *alive: str, shown: bool | None = True) -> None:
        super().__init__()
        self.alive = set(alive)
        self.shown = shown

    def evidence(self, pid: int, start: int, token: str) -> bool | None:
        """Give what each of them shows."""
        del pid, start, token
        return self.shown

    def adopts(self, holder: str, token: str, pid: int, process: str) -> bool:
        """Tell that no lease is for another process."""
        del holder, token, pid, process
        return False

    def lives(self, registered: str) -> bool:
        """Return whether it is one of those."""
        return registered in self.alive


class Host:
    """One host's reckoner, second after second."""

    def __init__(self, *alive: str, shown: bool | None = True, **policy: Any) -> None:
        self.system = Nobody(*alive, shown=shown)
        self.reckoner = ReportBuilder(self.system)
        self.pool = replace(POOL, **policy)
        self.now_ms = 1_000_000

    def look(
        self,
        devices: tuple[DeviceSample, ...],
        held: Holders | None = None,
        programs: tuple[Program, ...] = (),
        *,
        after_s: float = 5,
        unseen: str = "",
    ) -> HostReport:
        """Judge a sample that is taken so many seconds after the last."""
        self.now_ms += round(after_s * 1000)
        look = HostSample(
            Sample(devices, "scripted"), self.now_ms, {p.pid: p for p in programs}, unseen
        )
        return self.reckoner.reckon(look, held or holders(), self.pool)
