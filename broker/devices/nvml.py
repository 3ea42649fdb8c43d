"""GPUs through NVML; the only module that imports pynvml, and not before the first sample.

Each GPU is read from its handle up, on a thread of its own: a GPU whose calls hang or fail
costs its own row's numbers and nothing else, and a count or an order that changed with a
driver reload needs no notice. No thread is started for a GPU whose last call still runs.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from broker.devices.call import Call
from broker.devices.known import Fault, Known
from broker.devices.nvml_gpu import fault_of, read
from broker.devices.sample import MAX_DEVICES, DeviceSample, Sample, text

if TYPE_CHECKING:
    from types import ModuleType

_UNLISTED = Fault("lost", "The NVIDIA driver no longer lists this GPU")


class NvmlSource:
    """Samples through NVML.

    sample() answers within two deadlines: one for NVML as a whole, one for all GPUs together.
    A GPU whose call outlives its deadline is not asked again before that call has ended, and
    what it answers then is dropped: it would pass for newer than it is. NVML is opened again
    at the next sample after it failed, and every `reopen_s` while a GPU is not well, because
    only that finds a GPU that came back; it is not done more often because without
    persistence mode it takes seconds.
    """

    name = "nvml"

    def __init__(self, host: str, *, deadline_s: float = 2.0, reopen_s: float = 300.0) -> None:
        self._deadline_s = deadline_s
        self._reopen_s = reopen_s
        self._known = Known(host)
        self._turn = threading.Lock()
        self._nvml: ModuleType | None = None
        self._driver: str | None = None
        self._opened_at: float | None = None  # monotonic; None while NVML is not open
        self._counting: Call[tuple[ModuleType, int]] | None = None
        self._reading: dict[int, Call[DeviceSample | Fault]] = {}
        self._ailing = False
        self._closed = False

    def sample(self) -> Sample:
        """Ask for every GPU once; a hanging one is reported as such."""
        with self._turn:
            if self._closed:
                return self._failed(Fault("error", "The NVML source is closed"))
            counting = self._counting = self._counting or Call(self._count, "nvml")
            if not counting.answered_within(self._deadline_s):
                return self._failed(_overdue(counting.age_s))
            self._counting = None
            try:
                nvml, count = counting.answer()
            except Exception as error:  # noqa: BLE001 - the sample says it
                return self._failed(fault_of(error))
            rows = self._known.merge(self._read_all(nvml, count), _UNLISTED)
            self._ailing = any(row.state != "ok" for row in rows)
            return Sample(_marked(rows), "nvml", None, self._driver)

    def close(self) -> None:
        """End the NVML session, unless a call hangs in it: that would hang as well."""
        with self._turn:
            self._closed = True
            if self._counting is None:
                Call(self._shut, "nvml-close").answered_within(self._deadline_s)

    def _failed(self, fault: Fault) -> Sample:
        rows = self._known.merge({}, Fault("error", fault.reason))
        return Sample(_marked(rows), "nvml", fault.reason, self._driver)

    def _count(self) -> tuple[ModuleType, int]:
        nvml = self._nvml = self._nvml or importlib.import_module("pynvml")
        opened = self._opened_at
        if opened is not None and self._ailing and time.monotonic() - opened >= self._reopen_s:
            self._shut()
        if self._opened_at is None:
            nvml.nvmlInit()
            self._opened_at = time.monotonic()
            with contextlib.suppress(nvml.NVMLError):
                self._driver = text(nvml.nvmlSystemGetDriverVersion()) or None
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            self._shut()
            self._opened_at = None
            raise
        if not 0 <= count <= MAX_DEVICES:
            raise ValueError(f"it counts {count} GPUs")
        return nvml, count

    def _shut(self) -> None:
        if self._nvml is None or self._opened_at is None:
            return
        if not any(call.running for call in self._reading.values()):
            self._opened_at = None
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _read_all(self, nvml: ModuleType, count: int) -> dict[int, DeviceSample | Fault]:
        until = time.monotonic() + self._deadline_s
        stuck = {index: call for index, call in self._reading.items() if call.running}
        fresh = {
            index: Call(partial(read, nvml, index), f"nvml-{index}")
            for index in range(count)
            if index not in stuck
        }
        self._reading = stuck | fresh
        answers = {index: _overdue(call.age_s) for index, call in stuck.items()}
        return answers | {index: _answer(call, until) for index, call in fresh.items()}


def _overdue(age_s: float) -> Fault:
    return Fault("error", f"NVML has not answered for {age_s:.1f} s")


def _marked(rows: tuple[DeviceSample, ...]) -> tuple[DeviceSample, ...]:
    return tuple(replace(row, nvml_error=row.nvml_error or row.reason or None) for row in rows)


def _answer(call: Call[DeviceSample | Fault], until: float) -> DeviceSample | Fault:
    if not call.answered_within(until - time.monotonic()):
        return _overdue(call.age_s)
    try:
        return call.answer()
    except Exception as error:  # noqa: BLE001 - this GPU's row says it
        return fault_of(error)
