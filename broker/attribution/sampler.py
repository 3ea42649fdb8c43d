"""Sampler of this machine's devices and processes, in a thread: a driver may hang."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from broker.attribution.mps import MpsDaemons
from broker.devices import Holding, Sample
from broker.devices.bounded_call import BoundedCall
from broker.devices.last_known import Fault, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.attribution.processes import Program, Programs, Visibility
    from broker.devices import Source

LATE_S: Final = 30.0
"""Seconds after which a look that goes on is told as the host's trouble, if none took longer."""

MOST_CODES: Final = 16
"""Most codes of a GPU at once, each told once: a crashing program may bring dozens."""

PROCESSES_S: Final = 1.0
"""Most seconds that a look at the processes may take."""


@dataclass(frozen=True, slots=True)
class HostSample:
    """One look at the devices and at the processes on them.

    Attributes:
        sampled_ms: its begin, on the pool's clock.
        programs: the living processes, by pid.
        unseen: the reason for which processes cannot be told; empty: they can.
    """

    sample: Sample
    sampled_ms: int
    programs: Mapping[int, Program]
    unseen: str


class Sampler:
    """Sampler that takes one look at a time, however long that takes.

    Args:
        wait_s: seconds that a caller waits for a look.
    """

    def __init__(
        self, source: Source, system: Programs, visibility: Visibility, wait_s: float
    ) -> None:
        self._source = source
        self._system = system
        self._visibility = visibility
        self._wait_s = wait_s
        self._looking: tuple[BoundedCall[HostSample], asyncio.Event] | None = None
        self._took_s = 0.0
        self._asking: BoundedCall[dict[int, Program]] | None = None
        self._untold: dict[str, tuple[int, ...]] = {}
        self._last: Sample | None = None
        self._paused = ""
        self._mps = MpsDaemons(system)

    @property
    def paused(self) -> str:
        """Reason for which nothing is looked at; empty: the driver is asked."""
        return self._paused

    @property
    def holds(self) -> bool:
        """True if the source holds the driver between two looks."""
        return isinstance(self._source, Holding)

    def pause(self, why: str) -> None:
        """Let go of the driver, and look at nothing until this is called with an empty text."""
        self._paused = why

    async def rest(self) -> str:
        """Let go of the driver until the next look; return why that failed, or an empty text."""
        return await asyncio.to_thread(self._let_go)

    def _let_go(self) -> str:
        return self._source.release() if isinstance(self._source, Holding) else ""

    async def look(self, now_ms: int) -> HostSample | None:
        """Return a look, begun now or earlier; None: it takes longer than a caller waits.

        Error codes of a GPU come with each look until `told` is called: a driver tells them once.

        Args:
            now_ms: the pool's time.
        """
        if self._looking is None:
            self._looking = self._begin(now_ms)
        looking, ended = self._looking
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                await ended.wait()
        if looking.running:
            return None
        self._looking, self._took_s = None, looking.took_s or 0.0
        return self._with_untold(looking.answer())

    def _begin(self, now_ms: int) -> tuple[BoundedCall[HostSample], asyncio.Event]:
        """Begin a look, on a thread that keeps no process from ending."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

        return BoundedCall(lambda: self._see(now_ms), "look", tell), ended

    @property
    def overdue_s(self) -> float:
        """Seconds that the present look has taken; 0.0: no more than looks may take here.

        They may take `LATE_S`, or twice as long as the one before: a slow driver is known by it.
        """
        age_s = 0.0 if self._looking is None else self._looking[0].age_s
        return age_s if age_s > max(LATE_S, 2 * self._took_s) else 0.0

    def told(self) -> None:
        """Note that the pool knows of the error codes in the last look."""
        self._untold.clear()

    def _with_untold(self, look: HostSample) -> HostSample:
        for device in look.sample.devices:
            if device.xids:
                codes = self._untold.get(device.uuid, ()) + device.xids
                self._untold[device.uuid] = tuple(dict.fromkeys(codes))[:MOST_CODES]
        devices = tuple(
            replace(device, xids=self._untold.get(device.uuid, ()))
            for device in look.sample.devices
        )
        return replace(look, sample=replace(look.sample, devices=devices))

    def _quiet(self, why: str) -> Sample:
        """Return the devices as last known, without any reading, and let go of the driver."""
        if held := self._let_go():
            why = f"{why}; {held}"
        known = self._last or Sample((), "none")
        devices = tuple(
            quiet(device, Fault("error", why, gone=not device.listed)) for device in known.devices
        )
        return replace(known, devices=devices, error=why)

    def _see(self, sampled_ms: int) -> HostSample:
        """Look at the devices, then at the processes on them.

        A late answer of the driver has the time at which it was asked.
        """
        if self._paused:
            return HostSample(self._quiet(self._paused), sampled_ms, {}, "")
        began = time.monotonic()
        sample = self._last = self._source.sample()
        if sampled_ms and sample.began is not None:
            sampled_ms -= max(0, math.ceil(1000 * (began - sample.began)))
        pids = {process.pid for d in sample.devices for process in d.processes or ()}
        unseen = self._system.unseen(self._visibility)  # also where no process is listed
        programs: Mapping[int, Program] = {}
        if pids and not unseen:
            # an old answer would pass for a new one
            if self._asking is None or not self._asking.running:
                self._asking = BoundedCall(lambda: self._system.look(pids), "proc")
                self._asking.answered_within(PROCESSES_S)
            if self._asking.running:
                unseen = f"/proc has not answered for {self._asking.age_s:.0f} s"
            else:
                programs = self._asking.answer()
        if not unseen:
            sample = replace(sample, devices=self._mps.mark(sample.devices))
        return HostSample(sample, sampled_ms, programs, unseen)
