"""Source of samples through NVML; only this module imports pynvml, at the first sample.

Each GPU is read from its handle up, on a thread of its own: a GPU whose calls hang or fail
costs its own row's numbers and nothing else, and a count or an order that changed with a
driver reload needs no notice. No thread is started for a GPU whose last call still runs.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from broker.devices.answer_times import AnswerTimes
from broker.devices.bounded_call import BoundedCall
from broker.devices.last_known import Fault, Known
from broker.devices.nvml.binding import FOLDERS, load_module, preload
from broker.devices.nvml.gpu import read
from broker.devices.nvml.handle import NO_LIBRARY, fault_of
from broker.devices.nvml.limits import HANGS, NOT_OPEN, limit_mb, set_limit
from broker.devices.nvml.processes import Busy
from broker.devices.nvml.session import Session
from broker.devices.nvml.xid import Xids
from broker.devices.sample import MAX_DEVICES, DeviceSample, Sample
from broker.devices.trouble import slow
from broker.devices.unified import Unified

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    Answer = tuple[DeviceSample, ...] | Fault
    """Reading of one index: the GPU and then its MIG devices, or the fault that prevented it."""

_HELD = "a call into the NVIDIA driver has not returned: only the end of this process lets go of it"
_OPENING = -1
"""Opening of NVML, among the indexes of GPUs."""

_ELSEWHERE = (
    "NVML's library is not where the loader looks, and was taken from {}: GPU programs may need "
    "its folder in LD_LIBRARY_PATH"
)

_UNLISTED = Fault("lost", "The NVIDIA driver no longer lists this GPU", gone=True)


class NvmlSource:
    """Source of samples through NVML.

    sample() answers within two deadlines: one for NVML as a whole, one for all GPUs together.
    A GPU whose call outlives its deadline is not asked again before that call has ended. Then it is
    waited for twice as long as that call took, within `most_s`: a slow driver is not a silent one.
    NVML is opened again
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
        most_s: float = 60.0,
        reopen_s: float = 300.0,
        pcie_every_s: float | None = None,
        libraries: tuple[str, ...] = FOLDERS,
        unified: Unified | None = None,
    ) -> None:
        self._libraries = libraries
        self._times = AnswerTimes(deadline_s, most_s)
        self._volatile: set[int] = set()
        self._warnings: dict[str, None] = {}
        self._deadline_s = deadline_s
        self._reopen_s = reopen_s
        self._pcie_every_s = pcie_every_s
        self._known = Known(host)
        self._unified = unified or Unified()
        self._xids = Xids()
        self._busy = Busy()
        self._turn = threading.Lock()
        self._nvml: ModuleType | None = None
        self._session: Session | None = None
        self._abandoned: list[Session] = []
        self._driver: str | None = None
        self._counting: BoundedCall[tuple[Session, int]] | None = None
        self._reading: dict[int, BoundedCall[Answer]] = {}
        self._limiting: BoundedCall[dict[tuple[str, str], str]] | None = None
        self._ailing = self._ended = self._closed = False

    def sample(self) -> Sample:
        """Ask for every GPU once, and report a hanging one as such."""
        with self._turn:
            if self._closed:
                return self._failed(Fault("error", "The NVML source is closed"))
            opens = self._session is None or self._is_to_reopen(self._session)
            counting = self._counting = self._counting or BoundedCall(self._count, "nvml")
            wait_s = self._times.seconds(_OPENING) if opens else self._deadline_s
            if not counting.answered_within(wait_s):
                return replace(self._failed(_overdue(counting.age_s)), late=True)
            self._counting = None
            if opens:
                self._times.note(_OPENING, counting.took_s)
            try:
                session, count = counting.answer()
            except Exception as error:  # noqa: BLE001 - the sample tells it
                return self._failed(fault_of(error))
            answers = self._unified.fill(self._read_all(session, count))
            session.watch.begin()
            rows = self._known.merge(answers, _UNLISTED)
            self._ended = any(isinstance(a, Fault) and a.ended for a in answers.values())
            self._ailing = session.watch.failed or any(
                row.state in {"lost", "error"} and not row.parent for row in rows
            )
            said = (*self._warnings, *self._slow())
            return Sample(self._marked(rows), "nvml", None, self._driver, said)

    def limits(self, wanted: Mapping[tuple[str, str], int | None]) -> dict[tuple[str, str], str]:
        """Set memory limits, in MiB by GPU and cgroup, and lift those that are None.

        Returns:
            For each the reason why it could not; empty: the driver has it now.
        """
        with self._turn:
            session = self._session
            if session is None or session.left:
                return dict.fromkeys(wanted, NOT_OPEN)
            if self._limiting is not None and self._limiting.running:
                return dict.fromkeys(wanted, HANGS)
            work = partial(_limited, session.nvml, wanted)
            self._limiting = setting = BoundedCall(work, "nvml-limits")
            if not setting.answered_within(self._deadline_s):
                return dict.fromkeys(wanted, HANGS)
            return setting.answer()

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
        self._closed = True
        if not self._turn.acquire(timeout=self._deadline_s):
            return  # a slow sample goes on, on a thread that ends with the process
        try:
            if self._counting is None:
                BoundedCall(self._shut, "nvml-close").answered_within(self._deadline_s)
                self._leave()
        finally:
            self._turn.release()

    def _failed(self, fault: Fault) -> Sample:
        rows = self._known.merge({}, Fault("error", fault.reason))
        return Sample(self._marked(rows), "nvml", fault.reason, self._driver)

    def _count(self) -> tuple[Session, int]:
        nvml = self._nvml = self._nvml or self._load()
        if self._session is not None and self._is_to_reopen(self._session):
            self._shut()
        if self._session is None:
            self._session = self._open(nvml)
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

    def _is_to_reopen(self, session: Session) -> bool:
        ailing = self._ailing and session.age_s >= self._reopen_s
        return session.left or self._ended or ailing

    def _load(self) -> ModuleType:
        module, warning = load_module()
        if warning:
            self._warnings[warning] = None
        return module

    def _open(self, nvml: ModuleType) -> Session:
        """Open NVML; where the loader does not find its library, in the places that we know."""
        try:
            return Session(nvml, self._xids, pcie_every_s=self._pcie_every_s)
        except nvml.NVMLError as error:
            path = preload(self._libraries) if error.value == NO_LIBRARY else ""
            if not path:
                raise
        self._warnings[_ELSEWHERE.format(path)] = None
        return Session(nvml, self._xids, pcie_every_s=self._pcie_every_s)

    def _slow(self) -> tuple[str, ...]:
        """Say how slow looks at the GPUs that are there are, and what helps; nothing: they are not.

        A slow opening of NVML, or a GPU that has gone, makes none of them older.
        """
        if not (seconds := self._times.slowest_s(self._reading)):
            return ()
        volatile = self._volatile & self._reading.keys()
        return (slow("NVML", seconds, persists=not volatile),)

    def _shut(self) -> None:
        busy = any(call.running for call in self._reading.values())
        busy = busy or (self._limiting is not None and self._limiting.running)
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
        for index, call in self._reading.items():
            self._times.note(index, call.took_s)
        stuck = {index: call for index, call in self._reading.items() if call.running}
        fresh = {
            index: BoundedCall(partial(self._read, session, index), f"nvml-{index}")
            for index in range(count)
            if index not in stuck
        }
        self._reading = stuck | fresh
        answers: dict[int, Answer] = {index: _overdue(call.age_s) for index, call in stuck.items()}
        began = time.monotonic()
        for index, call in fresh.items():
            answers[index] = _answer(call, began + self._times.seconds(index))
            self._times.note(index, call.took_s)
        return answers

    def _read(self, session: Session, index: int) -> Answer:
        answer = read(session.nvml, session.watch, self._busy, index)
        if self._times.is_slow(index):
            if session.persists(index):
                self._volatile.discard(index)
            else:
                self._volatile.add(index)
        return answer

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


def _limited(
    nvml: ModuleType, wanted: Mapping[tuple[str, str], int | None]
) -> dict[tuple[str, str], str]:
    """Set those limits that the driver does not have yet; return why not, by GPU and cgroup."""
    return {
        (uuid, cgroup): ""
        if memory_mb is not None and limit_mb(nvml, uuid, cgroup) == memory_mb
        else set_limit(nvml, uuid, cgroup, memory_mb)
        for (uuid, cgroup), memory_mb in wanted.items()
    }
