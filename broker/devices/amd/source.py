"""Source of samples of AMD's GPUs, from the kernel's files.

`amdsmi` is not needed: the files tell all that it tells, it names no process while other users'
are hidden, its ids are not the runtime's, and importing it fails in ways of its own.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from agent_sdk.engines.visible import AMD
from broker.devices.amd.card import Sensors, read_books
from broker.devices.amd.processes import holdings
from broker.devices.amd.row import row, with_sensors
from broker.devices.amd.topology import gpus, present
from broker.devices.bounded_call import BoundedCall
from broker.devices.last_known import Fault, Known, quiet
from broker.devices.sample import DeviceSample, Sample, label_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from broker.devices.amd.card import Books
    from broker.devices.amd.processes import Holdings
    from broker.devices.amd.topology import Gpu

LABEL: Final = 40
"""Most letters of the host in the id of a GPU that has none of its own."""

T = TypeVar("T")

_LOST: Final = Fault("lost", "the GPU has fallen off the bus")
_UNLISTED: Final = Fault("lost", "the driver amdgpu no longer lists this GPU", gone=True)
_SILENT: Final = "{} has not answered for {:.0f} s: its driver may hang"


class AmdSource:
    """Source of samples of the GPUs that the files below `root` tell of.

    Each card is read in two threads of its own, its books and its sensors. One that hangs is left
    behind, and is not asked again before it answers; the others are told all the same. `sample`
    takes `wait_s` at most, for each of the two.

    Attributes:
        root: the folder with the files.
        first: the index of its first GPU.
        alone: this machine has no GPUs of others, beside which a processor's are not leased.
    """

    name = "amd"

    def __init__(self, host: str, root: Path, *, wait_s: float = 2.0, first: int = 0) -> None:
        self._host = label_of(host)[:LABEL]
        self.root = root
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
            found = gpus(self.root)
            cards = {gpu.pdev: gpu.folder for gpu in found}
            self._start(cards)
            books = {pdev: self._book(pdev) for pdev in cards}
            for pdev, told in books.items():
                if told is not None and not (told.asleep or told.gone):
                    self._sense(pdev, cards[pdev])
            holds = self._held()
            alone = self.alone and all(each is None or each.integrated for each in books.values())
            answers: dict[int, tuple[DeviceSample, ...] | Fault] = {}
            for place, gpu in enumerate(found):
                answers[self.first + place] = self._answer(
                    gpu, self.first + place, books[gpu.pdev], holds, alone=alone
                )
            devices = self._known.merge(answers, _UNLISTED)
            return Sample(devices, "amd", None if devices else self._why_none(), began=began)

    def close(self) -> None:
        """Do nothing: no file is kept open between samples."""

    def _why_none(self) -> str:
        if not present(self.root):
            return "The driver amdgpu is not loaded on this machine"
        return (
            "The driver amdgpu is loaded, and no GPU of it may be used here: /dev/dri lacks its "
            "render node, or the compute driver (KFD) refuses it"
        )

    def _start(self, cards: Mapping[str, Path]) -> None:
        """Begin to read the books of every card, and the processes, where no read hangs."""
        for pdev, folder in cards.items():
            call = self._books.get(pdev)
            if call is None or not call.running:
                self._books[pdev] = BoundedCall(partial(read_books, folder), f"amd-{pdev}")
        if self._looking is None or not self._looking.running:
            self._looking = BoundedCall(lambda: holdings(self.root), "amd-processes")

    def _held(self) -> Holdings | None:
        call = self._looking
        return call.answer() if call is not None and self._answers(call) else None

    def _book(self, pdev: str) -> Books | None:
        call = self._books[pdev]
        return call.answer() if self._answers(call) else None

    def _answers(self, call: BoundedCall[T]) -> bool:
        """Return whether a call answers within `wait_s` of its beginning."""
        return call.answered_within(self._wait_s - call.age_s)

    def _answer(
        self,
        gpu: Gpu,
        index: int,
        books: Books | None,
        holds: Holdings | None,
        *,
        alone: bool,
    ) -> tuple[DeviceSample, ...] | Fault:
        if books is None:
            return Fault("error", _SILENT.format(gpu.pdev, self._books[gpu.pdev].age_s))
        uuid = self._uuid(gpu, books)
        device = row(self.root, gpu, uuid, index, books, holds, alone=alone)
        if books.gone:
            return (quiet(device, _LOST),)
        if books.asleep:
            return (_asleep(device),)
        sensors, call = self._sensors[gpu.pdev]
        if not self._answers(call):
            silent = _SILENT.format(sensors.at or "a sensor", call.age_s)
            return (_in_error(device, silent),)
        if fault := sensors.fault:
            return (_in_error(device, fault),)
        return (with_sensors(device, gpu, books, sensors),)

    def _sense(self, pdev: str, folder: Path) -> None:
        """Begin to read a card's sensors, unless that hangs."""
        known = self._sensors.get(pdev)
        if known is None or not known[1].running:
            sensors = Sensors()
            call = BoundedCall(partial(sensors.take, folder), f"amd-sensors-{pdev}")
            self._sensors[pdev] = sensors, call

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
