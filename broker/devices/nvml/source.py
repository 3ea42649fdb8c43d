"""Source of samples through NVML; only this module imports pynvml, at the first sample.

Each GPU is read from its handle up, on a thread of its own: a GPU whose calls hang or fail
costs its own row's numbers and nothing else, and a count or an order that changed with a
driver reload needs no notice. No thread is started for a GPU whose last call still runs.
"""

from __future__ import annotations

import importlib
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from broker.devices.bounded_call import BoundedCall
from broker.devices.last_known import Fault, Known
from broker.devices.nvml.gpu import read
from broker.devices.nvml.handle import fault_of
from broker.devices.nvml.processes import Busy
from broker.devices.nvml.session import Session
from broker.devices.nvml.xid import Xids
from broker.devices.sample import MAX_DEVICES, DeviceSample, Sample

if TYPE_CHECKING:
    from types import ModuleType

    Answer = tuple[DeviceSample, ...] | Fault
    """Reading of one index: the GPU and then its MIG devices, or the fault that prevented it."""

_HELD = "a call into the NVIDIA driver has not returned: only the end of this process lets go of it"

_UNLISTED = Fault("lost", "The NVIDIA driver no longer lists this GPU", gone=True)


class NvmlSource:
    """Source of samples through NVML.

    sample() answers within two deadlines: one for NVML as a whole, one for all GPUs together.
    A GPU whose call outlives its deadline is not asked again before that call has ended, and
    its late answer is dropped: it would pass for newer than it is. NVML is opened again
    at the next sample after it failed, and every `reopen_s` while a GPU is not well or XIDs are not
    collected, because only that finds a GPU that came back; it is not done more often because
    without persistence mode it takes seconds. The PCIe throughput is asked for every `pcie_every_s`
    seconds, if that is given.
    """

    name = "nvml"

    def __init__(
        self,
        host: str,
        *,
        deadline_s: float = 2.0,
        reopen_s: float = 300.0,
        pcie_every_s: float | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._reopen_s = reopen_s
        self._pcie_every_s = pcie_every_s
        self._known = Known(host)
        self._xids = Xids()
        self._busy = Busy()
        self._turn = threading.Lock()
        self._nvml: ModuleType | None = None
        self._session: Session | None = None
        self._abandoned: list[Session] = []
        self._driver: str | None = None
        self._counting: BoundedCall[tuple[Session, int]] | None = None
        self._reading: dict[int, BoundedCall[Answer]] = {}
        self._ailing = self._ended = self._closed = False

    def sample(self) -> Sample:
        """Ask for every GPU once, and report a hanging one as such."""
        with self._turn:
            if self._closed:
                return self._failed(Fault("error", "The NVML source is closed"))
            counting = self._counting = self._counting or BoundedCall(self._count, "nvml")
            if not counting.answered_within(self._deadline_s):
                return self._failed(_overdue(counting.age_s))
            self._counting = None
            try:
                session, count = counting.answer()
            except Exception as error:  # noqa: BLE001 - the sample tells it
                return self._failed(fault_of(error))
            answers = self._read_all(session, count)
            session.watch.begin()
            rows = self._known.merge(answers, _UNLISTED)
            self._ended = any(isinstance(a, Fault) and a.ended for a in answers.values())
            self._ailing = session.watch.failed or any(
                row.state in {"lost", "error"} and not row.parent for row in rows
            )
            return Sample(self._marked(rows), "nvml", None, self._driver)

    def release(self) -> str:
        """Let go of the driver until the next sample.

        NVML keeps each GPU open, and a GPU that something has open cannot be reset.

        Returns:
            The reason why it could not, in a sentence; empty: it is let go of.
        """
        with self._turn:
            if self._counting is not None and not self._counting.answered_within(self._deadline_s):
                return _HELD
            self._counting = None
            shutting = BoundedCall(self._shut, "nvml-release")
            let_go = shutting.answered_within(self._deadline_s) and self._session is None
            self._leave()
            return "" if let_go and not self._abandoned else _HELD

    def close(self) -> None:
        """End the NVML session, unless a call hangs in it: the end would hang as well."""
        with self._turn:
            self._closed = True
            if self._counting is None:
                BoundedCall(self._shut, "nvml-close").answered_within(self._deadline_s)
                self._leave()

    def _failed(self, fault: Fault) -> Sample:
        rows = self._known.merge({}, Fault("error", fault.reason))
        return Sample(self._marked(rows), "nvml", fault.reason, self._driver)

    def _count(self) -> tuple[Session, int]:
        nvml = self._nvml = self._nvml or importlib.import_module("pynvml")
        session = self._session
        if session is not None and (
            session.left or self._ended or (self._ailing and session.age_s >= self._reopen_s)
        ):
            self._shut()
        if self._session is None:
            self._session = Session(nvml, self._xids, pcie_every_s=self._pcie_every_s)
            self._driver = self._session.driver or self._driver
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            self._shut()
            self._leave()
            raise
        if not 0 <= count <= MAX_DEVICES:
            raise ValueError(f"it counts {count} GPUs")
        return self._session, count

    def _shut(self) -> None:
        busy = any(call.running for call in self._reading.values())
        busy = busy or any(session.running for session in self._abandoned)
        session = self._session
        if session is not None and not busy and session.shut():
            self._session = None

    def _leave(self) -> None:
        """Abandon the session when it could not be shut."""
        session, self._session = self._session, None
        if session is not None:
            session.leave()
            self._abandoned = [s for s in [*self._abandoned, session] if s.running]

    def _read_all(self, session: Session, count: int) -> dict[int, Answer]:
        until = time.monotonic() + self._deadline_s
        stuck = {index: call for index, call in self._reading.items() if call.running}
        fresh = {
            index: BoundedCall(
                partial(read, session.nvml, session.watch, self._busy, index), f"nvml-{index}"
            )
            for index in range(count)
            if index not in stuck
        }
        self._reading = stuck | fresh
        answers: dict[int, Answer] = {index: _overdue(call.age_s) for index, call in stuck.items()}
        return answers | {index: _answer(call, until) for index, call in fresh.items()}

    def _marked(self, rows: tuple[DeviceSample, ...]) -> tuple[DeviceSample, ...]:
        """Return the rows with their XIDs, PCIe throughput and errors."""
        xids = self._xids.take({row.uuid for row in rows})
        pcie = self._session.pcie if self._session is not None else None
        marked = []
        for row in rows:
            wrong = row.reason if row.state != "mig" else ""
            sent, received = (None, None)
            if pcie is not None and row.state in {"ok", "mig"}:
                sent, received = pcie.last(row.uuid)
            marked.append(
                replace(
                    row,
                    nvml_error=row.nvml_error or wrong or None,
                    xids=xids.get(row.parent or row.uuid, ()),
                    pcie_tx_kb_s=sent,
                    pcie_rx_kb_s=received,
                )
            )
        return tuple(marked)


def _overdue(age_s: float) -> Fault:
    return Fault("error", f"NVML has not answered for {age_s:.1f} s")


def _answer(call: BoundedCall[Answer], until: float) -> Answer:
    if not call.answered_within(until - time.monotonic()):
        return _overdue(call.age_s)
    try:
        return call.answer()
    except Exception as error:  # noqa: BLE001 - this GPU's row tells it
        return fault_of(error)
