"""Reporter of this machine's devices to the pool, again and again.

The driver and the system are asked in a thread. A hanging one must not silence the host: then the
report is a heartbeat without devices, and the last report of them stands, with its age.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent_sdk.clock import local_now
from agent_sdk.errors import BadRequest, HostTaken, LeaseError, LeaseLost, UnknownToken
from agent_sdk.protocol.report import changes
from agent_sdk.state.finding_kinds import KINDS
from broker import __version__
from broker.attribution.driver_release import DriverRelease
from broker.attribution.enforcement import ProcessKiller
from broker.attribution.limits import Limiter
from broker.attribution.missing import NOT_LISTED, with_missing
from broker.attribution.processes import Programs
from broker.attribution.report import ReportBuilder
from broker.attribution.sampler import Sampler
from broker.devices import (
    UNNAMED,
    DriverLimits,
    choose,
    find_smi,
    trouble_of,
    warning_of,
    without_numbers,
)
from broker.identity import RIVAL_MS, has_ended, machine_of, own_identity
from broker.maintenance.function_loader import Loading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.protocol.messages import Moment
    from agent_sdk.protocol.report import Report, Reported
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.holders import Holders
    from agent_sdk.state.snapshot import PoolStatus
    from broker.attribution.report import HostReport
    from broker.attribution.sampler import HostSample
    from broker.devices import Sample, Source
    from broker.settings import Settings

log = logging.getLogger(__name__)

BATCH = 64
"""Most devices in one report, as `lua/report.lua` takes them."""

TOUCH_NOTHING = frozenset({"none", "simulated", "scripted"})
"""Sources that may be asked under SAFE_MODE."""

STOPPING: Final = {"state": "stopping", "reason": "its reporter is stopping"}
"""State of a healthy device while its host drains."""

NAMED: Final = {
    "state": "error", "reason": NOT_LISTED, "processes": "", "listed": "0",
    **dict.fromkeys(KINDS, ""),
}  # fmt: skip
"""Fields of a row without a name that goes: it was in error, and no other GPU is lost by it."""

ESSENTIAL: Final = frozenset(
    {"index", "model", "total_mb", "system_mb", "used_mb", "state", "simulated", "listed"}
)
"""Fields that every report needs, in forms that no outside text can spoil."""

FORGOTTEN: Final = "1"
"""Epoch of no pool: real ones are microseconds since 1970."""

LATE: Final = "a look at this host's GPUs has taken {:.0f} s so far: the driver does not answer"

WAIT_S: Final = 1.0
"""Seconds that a report waits for a look at the devices; then it is a heartbeat."""

WATCHFUL_S: Final = 1.0
"""Seconds between two looks while processes may be ended before a device is out of memory."""

DRAIN_LOOK_S: Final = 0.5

SAME_NAME: Final = (
    "two machines report as host {host}, and one alone may: the other is {other}; give one of them "
    "another name, GPU_BROKER_HOSTNAME"
)

SAME_DEVICE: Final = (
    "two hosts list GPU {uuid}, {holder} and {other}, and {holder} keeps it: stop one of the two "
    "reporters, or give each machine UUIDs of its own"
)


def source_of(settings: Settings) -> Source:
    """Return the device source that the settings ask for.

    Raises:
        DeviceSourceError: it is unavailable.
    """
    return choose(
        settings.devices,
        enable_nvml=settings.enable_nvml,
        safe_mode=settings.safe_mode or False,
        host=settings.sdk.hostname,
        smi_on_path=find_smi(),
        pcie=settings.pcie,
        limits=DriverLimits(
            settings.driver_wait_s,
            settings.driver_most_s,
            settings.nvml_library,
            settings.unified_memory_mb,
            settings.amd_root,
        ),
    )


class Reporter:
    """Reporter of one host's devices, until cancelled.

    Args:
        client: the pool's client.
        source: the source of the devices.
        settings: this process's settings.
        pool_was_lost: a new pool first waits for the holders of the earlier one.

    Attributes:
        sample: the source's last sample, or None.
    """

    def __init__(
        self,
        client: AsyncLeaseClient,
        source: Source,
        settings: Settings,
        *,
        pool_was_lost: bool = False,
    ) -> None:
        self._client = client
        self._loading = Loading(client)
        self._source = source
        self._settings = settings
        self._host = settings.sdk.hostname
        self._system = Programs()
        self._reckoner = ReportBuilder(self._system, settings.report_s)
        self._ending = ProcessKiller(self._system, may_kill=settings.may_kill)
        wait_s = min(WAIT_S, settings.report_s)
        self._looker = Sampler(source, self._system, settings.processes, wait_s)
        self._limiter = Limiter(source, self._system)
        self._release = DriverRelease(client, self._host, self._looker)
        self._every_s = settings.report_s
        self._draining = self._withdrawn = False
        self._hurry = asyncio.Event()
        self._epoch = FORGOTTEN if pool_was_lost else ""
        self._seen_ms = 0
        self._pool_ms = 0
        self._pool_ms_at = 0.0
        self._me, self._over = own_identity(), ""
        self._rivals: tuple[str, ...] = ()
        self._wanted: tuple[str, ...] = ()
        self._words: tuple[str, str] | None = None
        self.sample: Sample | None = None

    async def run(self) -> None:
        """Report every `report_s` seconds; a problem is logged when it changes."""
        before = ""
        while True:
            began = local_now()
            try:
                await self.report_once()
                trouble = "; ".join(filter(None, (*(self._words or ()), *self._rivals)))
            except HostTaken as error:
                trouble = self._taken(error.reporter)
            except LeaseError as error:
                trouble = f"reporting {self._host} failed: {error}"
            except Exception as error:
                trouble = f"reporting {self._host} failed: {type(error).__name__}"
                if trouble != before:
                    log.exception("a look at the devices of %s could not be reckoned", self._host)
                await self._live(trouble)
            if without_numbers(trouble) != without_numbers(before):
                before = trouble
                log.warning("%s", trouble) if trouble else log.info("reporting %s", self._host)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, began + self._every_s - local_now())):
                    await self._hurry.wait()
            self._hurry.clear()

    async def drain(self, seconds: float) -> int | None:
        """Offer no device any more, and wait at most `seconds` for the leases on them to end.

        Await it while `run` goes on, which reports it. A later reporter of this host undoes it.
        Return the number of leases left; None: the store could not be told, or not be asked.
        """
        until = local_now() + seconds
        self._draining = True
        self._hurry.set()
        while True:
            left = await self._left()
            rest_s = until - local_now()
            if left == 0 or rest_s <= 0:
                return left
            await asyncio.sleep(min(DRAIN_LOOK_S, rest_s))

    async def _left(self) -> int | None:
        if not self._withdrawn:
            return None
        try:
            devices = await self._client.devices()
        except LeaseError:
            return None
        return sum(device.leases for device in devices if device.host == self._host)

    async def report_once(self) -> None:
        """Look at the devices and report them; without an answer in time, only that we live."""
        draining = self._draining
        if await self._report(draining=draining):
            self._withdrawn = draining

    def _taken(self, reporter: str) -> str:
        """Return the reason for which this host is not reported.

        An ended process of ours gives way at once.
        """
        if has_ended(reporter):
            self._over = reporter
            self._hurry.set()
            return ""
        return SAME_NAME.format(host=self._host, other=machine_of(reporter))

    async def _live(self, trouble: str) -> None:
        """Report at least that we live, and in which trouble."""
        self._words = (trouble, "")
        with suppress(LeaseError):
            await self._send((), 0)

    async def _report(self, *, draining: bool) -> bool:
        """Report once; return whether the pool now has our devices as we want them."""
        pool = await self._client.pool()
        if not self._pool_ms:
            self._pool_ms, self._pool_ms_at = pool.now_ms, local_now()
        safe = pool.safe_mode if pool.ready else self._settings.new_pool_safe_mode
        if self._source.name not in TOUCH_NOTHING and safe:
            self._words = ("", "")  # nothing is asked
            await self._release.under_safe_mode()
            await self._send((), 0)
            return True  # no device is lent while the pool is safe
        if await self._release.before_look(self._pool_now_ms()):
            await self._send((), 0)
            return True
        looked = await self._looker.look(self._pool_now_ms())
        if looked is None:
            if overdue_s := self._looker.overdue_s:
                _, warning = self._words or ("", "")
                self._words = (LATE.format(overdue_s), warning)
            await self._send((), 0)
            return False
        if self._looker.paused and not looked.sample.devices:
            await self._send((), 0)
            return False
        self.sample = looked.sample
        self._words = trouble_of(looked.sample), "" if safe else warning_of(looked.sample)
        # After the look: a lease that began meanwhile must not leave its process without one.
        over = self._reckoner.perhaps_over
        holders = await self._client.holders(self._host, self._pool_now_ms(), over)
        if looked.sample.source == "none" and holders.devices:
            return True  # without a look this process must not speak for the host: another one does
        self._wanted = tuple(
            SAME_DEVICE.format(holder=self._host, other=device.rival, uuid=device.uuid)
            for device in holders.devices.values()
            if device.rival and pool.now_ms - device.rival_ms < RIVAL_MS
        )
        missing = self._missing(looked.sample, holders)
        looked = replace(looked, sample=with_missing(looked.sample, missing))
        reckoning = self._reckoner.reckon(looked, holders, pool)
        await self._limit(reckoning, holders)
        acts = self._ending.untold()
        reports = self._reports(looked.sample, reckoning, holders, acts, draining=draining)
        for start in range(0, max(1, len(reports)), BATCH):
            await self._send_all(reports[start : start + BATCH], looked.sampled_ms, holders.rows)
        self._looker.told()
        self._reckoner.told()
        self._ending.told(acts)
        await self._act(reckoning, looked, pool)
        if await self._release.after_report(reckoning.reports, holders, self._pool_now_ms()):
            self._hurry.set()
        return True

    async def _limit(self, reckoning: HostReport, holders: Holders) -> None:
        """Have the driver limit the leases that ask for it, and report which it limits."""
        if self._looker.paused:
            return
        for uuid, said in (await self._limiter.limit(holders)).items():
            if uuid in reckoning.reports:
                reckoning.reports[uuid] |= said

    def _reports(
        self,
        sample: Sample,
        reckoning: HostReport,
        holders: Holders,
        acts: Mapping[str, str],
        *,
        draining: bool,
    ) -> list[Report]:
        """Return the fields of each device, and of rows without a name that are missing now."""
        unlisted = {d.uuid for d in sample.devices if not d.listed} - holders.devices.keys()
        said = {u: r for u, r in reckoning.reports.items() if u not in unlisted}
        said = {u: r | {"ended": acts[u]} if u in acts else r for u, r in said.items()}
        if draining:
            said = {u: r | STOPPING if r["state"] == "ok" else r for u, r in said.items()}
        said |= {u: NAMED for u in self._missing(sample, holders) if u.startswith(UNNAMED)}
        if self._me:  # unknown without /proc
            said = {u: r | {"reporter": self._me} for u, r in said.items()}
        return [(uuid, tuple(fields.items())) for uuid, fields in said.items()]

    def _missing(self, sample: Sample, holders: Holders) -> dict[str, DeviceStatus]:
        """Return the devices of this host that a sample does not show."""
        shown = {device.uuid for device in sample.devices}
        return {
            uuid: device
            for uuid, device in holders.devices.items()
            if uuid not in shown and not self._others(device)
        }

    def _others(self, device: DeviceStatus) -> bool:
        """Tell whether another reporter of this host, which may live, has listed a device."""
        if device.reporter in {"", self._me} or has_ended(device.reporter):
            return False
        return self._pool_now_ms() - device.sampled_ms < self._settings.deadline_ms

    async def _send_all(
        self, reports: list[Report], sampled_ms: int, rows: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Report what changed of these devices; after a refusal the essential fields of all."""
        brief = tuple((u, changes(said, rows[u]) if u in rows else said) for u, said in reports)
        try:
            await self._send(brief, sampled_ms)
        except BadRequest:
            log.exception("a report of %s was refused: the devices alone are reported", self._host)
            plain = [(u, tuple(p for p in said if p[0] in ESSENTIAL)) for u, said in reports]
            await self._send(tuple(plain), sampled_ms)

    async def _act(self, reckoning: HostReport, looked: HostSample, pool: PoolStatus) -> None:
        """Carry the policy's actions out; the next report tells them."""
        for each in reckoning.revoke:
            with suppress(LeaseLost, UnknownToken):
                await self._client.revoke(each.token, force=False, why=each.why)
        for condemned in reckoning.end:
            self._ending.end(condemned)
        if self._ending.untold() or self._reckoner.hurries:
            self._hurry.set()
        if not looked.unseen:
            self._ending.forget({(c.program.pid, c.program.start) for c in reckoning.end})
        watchful = pool.kill_on_oom and self._settings.may_kill
        self._every_s = min(self._settings.report_s, WATCHFUL_S if watchful else 60.0)

    async def _send(self, devices: tuple[Report, ...], sampled_ms: int) -> Moment:
        sent_at = local_now()
        moment = await self._client.report(
            self._host,
            devices,
            deadline_ms=self._settings.deadline_ms,
            sampled_ms=sampled_ms,
            epoch=self._epoch,
            seen_ms=self._seen_ms,
            safe_mode=self._settings.new_pool_safe_mode,
            version=__version__,
            reporter=self._me,
            over=self._over,
            trouble=self._words[0] if self._words else None,
            warning=self._words[1] if self._words else "",
        )
        self._hear(moment)
        self._epoch, self._seen_ms = moment.epoch, moment.now_ms
        self._pool_ms, self._pool_ms_at = moment.now_ms, max(sent_at, local_now())
        await self._loading.load_missing()
        return moment

    def _hear(self, reported: Reported) -> None:
        """Note the other reporters that claim this host's name, or its devices."""
        for each in reported.contested:
            if has_ended(each.reporter):
                self._over = each.reporter
                self._hurry.set()
        self._rivals = tuple(
            SAME_DEVICE.format(holder=each.host, other=self._host, uuid=each.uuid)
            for each in reported.contested
            if each.reporter != self._over
        )
        self._rivals += self._wanted
        if reported.rival:
            other = machine_of(reported.rival)
            self._rivals += (SAME_NAME.format(host=self._host, other=other),)

    def _pool_now_ms(self) -> int:
        """Return the pool's time, never ahead of it: a sample must not look newer than it is."""
        if not self._pool_ms:
            return 0
        return self._pool_ms + int((local_now() - self._pool_ms_at) * 1000)
