"""Source of samples of AMD's GPUs, from the kernel's files.

`amdsmi` is not needed: the files tell all that it tells, it names no process while other users'
are hidden, its ids are not the runtime's, and importing it fails in ways of its own.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from agent_sdk.engines.visible import AMD
from broker.devices.amd.card import Sensors, read_books
from broker.devices.amd.processes import holdings
from broker.devices.amd.row import row, with_sensors
from broker.devices.amd.topology import gpus
from broker.devices.bounded_call import BoundedCall
from broker.devices.last_known import Fault, Known, quiet
from broker.devices.sample import DeviceSample, Sample, label_of

if TYPE_CHECKING:
    from pathlib import Path

    from broker.devices.amd.card import Books
    from broker.devices.amd.processes import Holdings
    from broker.devices.amd.topology import Gpu

LABEL: Final = 40
"""Most letters of the host in the id of a GPU that has none of its own."""

_LOST: Final = Fault("lost", "the GPU has fallen off the bus")
_UNLISTED: Final = Fault("lost", "the driver amdgpu no longer lists this GPU", gone=True)
_SILENT: Final = "{} has not answered for {:.0f} s: its driver may hang"


class AmdSource:
    """Source of samples of the GPUs that the files below `root` tell of.

    Each card is read in two threads of its own, its books and its sensors. One that hangs is left
    behind, and is not asked again before it answers; the others are told all the same. `sample`
    takes `wait_s` at most, for each of the two.

    Attributes:
        first: the index of its first GPU.
        alone: this machine has no GPUs of others, beside which a processor's are not leased.
    """

    name = "amd"

    def __init__(self, host: str, root: Path, *, wait_s: float = 2.0, first: int = 0) -> None:
        self._host = label_of(host)[:LABEL]
        self._root = root
        self._wait_s = wait_s
        self._known = Known(host)
        self._turn = threading.Lock()
        self._ids: dict[str, str] = {}
        self._books: dict[str, BoundedCall[Books]] = {}
        self._sensors: dict[str, tuple[Sensors, BoundedCall[None]]] = {}
        self._looking: BoundedCall[Holdings] | None = None
        self.first = first
        self.alone = True

    def sample(self) -> Sample:
        """Read every GPU once."""
        with self._turn:
            began = time.monotonic()
            found = gpus(self._root)
            self._start(found)
            until = began + self._wait_s
            holds = self._held(until)
            books = {pdev: self._book(pdev, until) for pdev in {gpu.pdev for gpu in found}}
            alone = self.alone and all(each is None or each.integrated for each in books.values())
            answers: dict[int, tuple[DeviceSample, ...] | Fault] = {}
            for place, gpu in enumerate(found):
                answers[self.first + place] = self._answer(
                    gpu, self.first + place, books[gpu.pdev], holds, until, alone=alone
                )
            return Sample(self._known.merge(answers, _UNLISTED), "amd", None, began=began)

    def close(self) -> None:
        """Do nothing: no file is kept open between samples."""

    def _start(self, found: list[Gpu]) -> None:
        """Begin to read the books of every card, and the processes, where no read hangs."""
        for gpu in found:
            call = self._books.get(gpu.pdev)
            if call is None or not call.running:
                work = partial(read_books, gpu.folder)
                self._books[gpu.pdev] = BoundedCall(work, f"amd-{gpu.pdev}")
        if self._looking is None or not self._looking.running:
            self._looking = BoundedCall(lambda: holdings(self._root), "amd-processes")

    def _held(self, until: float) -> Holdings | None:
        call = self._looking
        if call is None or not call.answered_within(until - time.monotonic()):
            return None
        return call.answer()

    def _book(self, pdev: str, until: float) -> Books | None:
        call = self._books[pdev]
        return call.answer() if call.answered_within(until - time.monotonic()) else None

    def _answer(
        self,
        gpu: Gpu,
        index: int,
        books: Books | None,
        holds: Holdings | None,
        until: float,
        *,
        alone: bool,
    ) -> tuple[DeviceSample, ...] | Fault:
        if books is None:
            return Fault("error", _SILENT.format(gpu.pdev, self._books[gpu.pdev].age_s))
        uuid = self._uuid(gpu, books)
        device = row(self._root, gpu, uuid, index, books, holds, alone=alone)
        if books.gone:
            return (quiet(device, _LOST),)
        if books.asleep:
            return (_asleep(device),)
        sensors, call = self._sense(gpu)
        if not call.answered_within(max(0.05, until - time.monotonic())):
            silent = _SILENT.format(sensors.at or "a sensor", call.age_s)
            return (_in_error(device, silent),)
        if fault := sensors.fault:
            return (_in_error(device, fault),)
        return (with_sensors(device, gpu, books, sensors),)

    def _sense(self, gpu: Gpu) -> tuple[Sensors, BoundedCall[None]]:
        """Return the sensors of a card and the call that reads them, begun anew unless it hangs."""
        known = self._sensors.get(gpu.pdev)
        if known is not None and known[1].running:
            return known
        sensors = Sensors()
        call: BoundedCall[None] = BoundedCall(
            lambda: sensors.take(gpu.folder), f"amd-sensors-{gpu.pdev}"
        )
        self._sensors[gpu.pdev] = sensors, call
        return self._sensors[gpu.pdev]

    def _uuid(self, gpu: Gpu, books: Books) -> str:
        """Return the id to keep: the board's, the one last known, KFD's, or the PCI address."""
        card = books.unique_id or self._ids.get(gpu.pdev, "")
        if not card and gpu.kfd_id and (books.asleep or books.gone or gpu.parts == 1):
            card = f"{gpu.kfd_id:016x}"
        if books.unique_id:
            self._ids[gpu.pdev] = books.unique_id
        name = f"{AMD}{card or f'{gpu.pdev}-{self._host}'}"
        return name if gpu.part is None else f"{name}/{gpu.part}"


def _asleep(device: DeviceSample) -> DeviceSample:
    """Return a card that sleeps: nothing computes on it, and its sensors are left alone."""
    return replace(device, utilization_gpu_pct=0.0)


def _in_error(device: DeviceSample, why: str) -> DeviceSample:
    """Return a card whose sensors fail; its memory is the driver's book-keeping, and right."""
    return replace(device, state="error", reason=why, processes=None)
