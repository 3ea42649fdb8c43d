"""The reporter: looks at this machine's devices and says so to the pool, again and again.

The driver is asked in a thread. A driver that hangs must not silence the host: then the report is a
heartbeat without devices, and what was known of them stands, with its age.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from agent_sdk.clocks import local_now
from agent_sdk.errors import LeaseError
from broker import __version__
from broker.devices import DeviceSample, Sample, Source, choose

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient
    from agent_sdk.protocol import Moment
    from agent_sdk.reporting import Fields, Report
    from broker.devices import DeviceSample, Sample
    from broker.settings import Settings

log = logging.getLogger(__name__)

BATCH = 64
"""Devices in one report; `lua/report.lua` takes no more."""

TOUCH_NOTHING = frozenset({"none", "simulated"})
"""Sources that may be asked under SAFE_MODE."""

UNNAMED = "UNKNOWN-"
"""How a source calls a device whose UUID the driver never told: nothing that leases can name."""

STOPPING: Final = (("state", "stopping"), ("reason", "its reporter is stopping"))
"""Said of a device that is ok while its host drains."""

DRAIN_LOOK_S: Final = 0.5

UNREPORTED = frozenset(
    {"uuid", "processes", "xids", "parent", "mps", "ecc_uncorrected", "rows_pending", "rows_failed"}
    | {"recovery_action", "power_limit_w", "clock_sm_mhz", "clock_memory_mhz"}
)
"""What a report has no field for."""

NOT_LISTED = "the driver has not listed this device since the reporter started"


def source_of(settings: Settings) -> Source:
    """The device source that the settings ask for.

    Raises:
        DeviceSourceError: it cannot be had.
    """
    return choose(
        settings.devices,
        enable_nvml=settings.enable_nvml,
        safe_mode=settings.safe_mode or False,
        host=settings.sdk.hostname,
        smi_on_path=shutil.which("nvidia-smi"),
        pcie=settings.pcie,
    )


class Reporter:
    """Reports one host's devices until cancelled.

    Attributes:
        sample: the last that the source gave, or None.
        sampled_at: when, on `local_now`'s clock.
    """

    def __init__(self, client: AsyncLeaseClient, source: Source, settings: Settings) -> None:
        self._client = client
        self._source = source
        self._settings = settings
        self._host = settings.sdk.hostname
        self._looking: asyncio.Future[Sample] | None = None
        self._looking_since_ms = 0
        self._draining = self._withdrawn = False
        self._hurry = asyncio.Event()
        self._epoch = ""
        self._pool_ms = 0
        self._pool_ms_at = 0.0
        self.sample: Sample | None = None
        self.sampled_at = 0.0

    async def run(self) -> None:
        """Report every `report_s` seconds; what goes wrong is logged when it changes."""
        said = ""
        while True:
            began = local_now()
            try:
                await self.report_once()
                trouble = (self.sample.error if self.sample else None) or ""
            except LeaseError as error:
                trouble = f"reporting {self._host} failed: {error}"
            if trouble != said:
                said = trouble
                log.warning("%s", trouble) if trouble else log.info("reporting %s", self._host)
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    max(0.05, began + self._settings.report_s - local_now())
                ):
                    await self._hurry.wait()
            self._hurry.clear()

    async def drain(self, seconds: float) -> int | None:
        """Offer no device any more, and wait for the leases on them, reporting, or for so long.

        To be awaited while `run` goes on, which reports it. A later reporter of this host undoes
        it. How many leases are left; None: the store could not be told, or not be asked.
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

    async def _report(self, *, draining: bool) -> bool:
        """Whether the pool now knows of our devices what we want it to."""
        if self._source.name not in TOUCH_NOTHING and await self._safe():
            await self._send((), 0)
            return True  # nobody gets any while the pool is safe
        looked = await self._look()
        if looked is None:
            await self._send((), 0)
            return False
        sample, sampled_ms = looked
        self.sample, self.sampled_at = sample, local_now()
        reports = [_report(d) for d in sample.devices if not d.uuid.startswith(UNNAMED)]
        registered = await self._client.device_ids(self._host)
        if sample.source == "none" and registered:
            return True  # who does not look must not speak for this host: another process does
        why = sample.error or NOT_LISTED
        missing = registered - {uuid for uuid, _ in reports}
        if draining:
            reports = [(uuid, _stopping(said)) for uuid, said in reports]
        reports += [(uuid, (("state", "lost"), ("reason", why))) for uuid in sorted(missing)]
        for start in range(0, max(1, len(reports)), BATCH):
            await self._send(tuple(reports[start : start + BATCH]), sampled_ms)
        return True

    async def _safe(self) -> bool:
        """Whether SAFE_MODE forbids to touch a driver now; the pool may say so at any time."""
        pool = await self._client.pool()
        return pool.safe_mode if pool.ready else self._settings.new_pool_safe_mode

    async def _look(self) -> tuple[Sample, int] | None:
        """One sample and the pool's time when it began; None: longer than a report may wait."""
        if self._looking is None:
            self._looking_since_ms = self._pool_now_ms()
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._source.sample))
        done, _ = await asyncio.wait({self._looking}, timeout=self._settings.report_s)
        if not done:
            return None
        looked, self._looking = self._looking, None
        return looked.result(), self._looking_since_ms

    async def _send(self, devices: tuple[Report, ...], sampled_ms: int) -> Moment:
        sent_at = local_now()
        moment = await self._client.report(
            self._host,
            devices,
            deadline_ms=self._settings.deadline_ms,
            sampled_ms=sampled_ms,
            epoch=self._epoch,
            safe_mode=self._settings.new_pool_safe_mode,
            version=__version__,
        )
        self._epoch = moment.epoch
        self._pool_ms, self._pool_ms_at = moment.now_ms, max(sent_at, local_now())
        return moment

    def _pool_now_ms(self) -> int:
        """The pool's time, never ahead of it: a sample must not look newer than it is."""
        if not self._pool_ms:
            return 0
        return self._pool_ms + int((local_now() - self._pool_ms_at) * 1000)


def _report(device: DeviceSample) -> Report:
    """A sample's fields as `report` takes them; what the driver cannot tell is empty, never 0."""
    said = [
        (f.name, _text(getattr(device, f.name))) for f in fields(device) if f.name not in UNREPORTED
    ]
    return device.uuid, tuple(said)


def _stopping(said: Fields) -> Fields:
    if ("state", "ok") not in said:
        return said
    return tuple(pair for pair in said if pair[0] not in {"state", "reason"}) + STOPPING


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(int(value)) if isinstance(value, bool) else str(value)
