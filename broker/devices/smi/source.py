"""Source of samples through nvidia-smi, for machines where this process does not open NVML."""

from __future__ import annotations

import csv
import math
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import model_of
from agent_sdk.state.telemetry import MAX_MB
from broker.devices.answer_times import AnswerTimes
from broker.devices.bounded_call import BoundedCall
from broker.devices.last_known import Fault, Known, quiet
from broker.devices.nvml.mig import divided
from broker.devices.sample import (
    DeviceSample,
    Sample,
    name_of,
    number,
    percent,
    system_mb_of,
    text,
    uuid_of,
)
from broker.devices.smi.gpus import GpuQuery
from broker.devices.smi.mig import UNTOLD, memory_of, parts_of, rows_of
from broker.devices.smi.processes import COMPUTE_MODES, LATE, Apps, read_apps
from broker.devices.smi.program import SmiError, SmiProgram
from broker.devices.smi.table import told
from broker.devices.smi.words import fault_of, is_unified, recovery_of
from broker.devices.trouble import slow
from broker.devices.unified import Unified

if TYPE_CHECKING:
    from broker.devices.smi.gpus import GpuAnswers

    Answers = dict[int, tuple[DeviceSample, ...] | Fault]
    """By index: a GPU with its MIG devices, or the fault that keeps it from being read."""

_NO_MEMORY = "nvidia-smi does not tell how much memory this GPU has"
_UNLISTED = Fault("lost", "nvidia-smi no longer lists this GPU", gone=True)

_GPUS: Final = 0
_NAMING: Final = 1
"""Keys of both questions among the times of answers."""

_REST_S: Final = 1.0
"""Seconds beside both for the list of MIG devices."""


@dataclass(slots=True)
class _Look:
    """Result of one look: `error` says why GPUs without an answer have none."""

    answers: Answers = field(default_factory=dict)
    error: str = ""
    warnings: tuple[str, ...] = ()
    driver: str = ""


class SmiSource:
    """Source of samples through the nvidia-smi program at `binary`.

    sample() answers within `wait_s`; a program that takes longer goes on, its answer counts when it
    comes, with the time of its begin, and the next one is waited for twice as long as it took.
    After `most_s` it is killed, if it can be: one that waits in the kernel for a GPU is left
    behind, and no other is started until it has ended.
    Rows printed before a failure are kept; devices without one are then in state ``error``. A GPU
    that cannot be opened fails the query for all: the others are asked for by themselves.
    Where processes or MIG devices cannot be told, the sample stands.
    """

    name = "smi"

    def __init__(
        self,
        host: str,
        binary: str,
        *,
        wait_s: float = 5.0,
        most_s: float = 60.0,
        unified: Unified | None = None,
    ) -> None:
        self._program = SmiProgram(binary, most_s)
        self._naming_program = SmiProgram(binary, most_s)  # one may hang, and the other not
        self._gpus = GpuQuery(self._program)
        self._times = AnswerTimes(wait_s, most_s)
        self._known = Known(host)
        self._unified = unified or Unified()
        self._turn = threading.Lock()
        self._driver: str | None = None
        self._asked = threading.Event()
        self._looking: BoundedCall[_Look] | None = None
        self._naming: BoundedCall[Apps] | None = None

    def sample(self) -> Sample:
        """Ask for every GPU once, or go on with what was asked before."""
        with self._turn:
            if self._looking is None:
                self._asked.clear()
                self._looking = BoundedCall(self._look, "smi")
            looking = self._looking
            # What comes after the GPUs has a limit of its own, and its slowness is not theirs.
            told = self._asked.wait(self._times.seconds(_GPUS))
            more_s = self._times.seconds(_NAMING) + _REST_S
            if not told or not looking.answered_within(more_s):
                why = f"nvidia-smi has not answered for {looking.age_s:.1f} s"
                rows = self._known.merge({}, Fault("error", why))
                return Sample(rows, "smi", why, self._driver, late=True)
            self._looking = None
            look = looking.answer()
            self._driver = look.driver or self._driver
            missing = Fault("error", look.error) if look.error else _UNLISTED
            rows = self._known.merge(look.answers, missing)
            return Sample(
                rows, "smi", look.error or None, self._driver, look.warnings, began=looking.began
            )

    def close(self) -> None:
        """End the program, if it runs; no sample is asked for after that."""
        self._program.close()
        self._naming_program.close()

    def _look(self) -> _Look:
        began = time.monotonic()
        try:
            gpus = self._gpus.ask()
        except SmiError as error:
            return _Look(error=text(error))
        except csv.Error as error:
            return _Look(error=f"nvidia-smi printed no table: {error}")
        else:
            self._times.note(_GPUS, time.monotonic() - began)
        finally:
            self._asked.set()
        answers: Answers = dict(gpus.faults)
        if gpus.rows:
            apps = self._processes(gpus)
            for index, record in gpus.rows.items():
                answers[index] = _device(index, record, apps)
            self._add_parts(answers, gpus, apps)
            answers = dict(self._unified.fill(answers, by_name=True))
        drivers = [told(record, "driver_version") for record in gpus.rows.values()]
        return _Look(answers, gpus.error, self._warnings(gpus), next(filter(None, drivers), ""))

    def _processes(self, gpus: GpuAnswers) -> Apps:
        """Ask for the processes; those that are not told in time cost the GPUs nothing.

        The answer to an earlier look is of other readings, and says only how long one takes.
        """
        naming, in_time = self._naming, False
        if naming is None or not naming.running:
            if naming is not None and not naming.answer().unseen:
                self._times.note(_NAMING, naming.took_s)
            work = partial(read_apps, self._naming_program, gpus)
            naming = self._naming = BoundedCall(work, "smi-processes")
            in_time = naming.answered_within(self._times.seconds(_NAMING))
        if not in_time:
            return Apps(unseen=f"{LATE}: no answer for {naming.age_s:.1f} s")
        return naming.answer()

    def _add_parts(self, answers: Answers, gpus: GpuAnswers, apps: Apps) -> None:
        """Add the MIG devices of divided GPUs to their answers; without a list, say so."""
        found = {i: a[0] for i, a in answers.items() if not isinstance(a, Fault)}
        whole = {i: gpu for i, gpu in found.items() if gpu.state == "mig"}
        if not whole:
            return
        status, printed = self._printed(gpus, "-L")
        listed = parts_of(printed)
        memory = memory_of(self._printed(gpus, "-q", "-x")[1]) if listed else {}
        for index, gpu in whole.items():
            parts = listed.get(gpu.uuid)
            rows = (*rows_of(gpu, parts or [], memory, apps),)
            named = {row.uuid for row in rows}
            if parts is None or status != 0:
                still = self._known.parts_of(gpu.uuid, Fault("error", UNTOLD))
                rows += tuple(row for row in still if row.uuid not in named)
            whole_gpu = divided(gpu, rows) if parts is not None else replace(gpu, reason=UNTOLD)
            answers[index] = (whole_gpu, *rows)

    def _warnings(self, gpus: GpuAnswers) -> tuple[str, ...]:
        """Return what the program says beside its rows, and whether it is slow."""
        said = tuple(f"nvidia-smi: {line}" for line in gpus.warnings)
        if not self._times.is_slow(_GPUS) or not gpus.rows:
            return said
        modes = {told(record, "persistence_mode") for record in gpus.rows.values()}
        return (*said, slow("nvidia-smi", gpus.took_s, persists="Disabled" not in modes))

    def _printed(self, gpus: GpuAnswers, *arguments: str) -> tuple[int, str]:
        """Return the exit status and what is printed; -1 and nothing: the program is not asked.

        The status with which all GPUs were told is as good as 0.
        """
        which = ("-i", ",".join(gpus.only)) if gpus.only else ()
        try:
            answer = self._program.ask(*arguments, *which)
        except SmiError:
            return -1, ""
        return 0 if answer.status == gpus.status else answer.status, answer.out


def _device(index: int, record: dict[str, str], apps: Apps) -> tuple[DeviceSample, ...] | Fault:
    fault = fault_of(record)
    uuid = uuid_of(told(record, "uuid"))
    if not uuid:
        return fault or Fault("error", "nvidia-smi gives this GPU no usable UUID")
    total = number(told(record, "memory.total"), 1, MAX_MB)
    used = number(told(record, "memory.used"), 0, MAX_MB)
    total_mb = None if total is None else math.floor(total)
    name = name_of(told(record, "name"))
    processes, unseen = apps.on(uuid)
    if processes and told(record, "display_active") == "Enabled":  # those who draw it does not name
        processes = tuple(replace(process, draws=True) for process in processes)
    device = DeviceSample(
        uuid=uuid,
        index=index,
        name=name,
        model=model_of(name),
        total_mb=total_mb,
        system_mb=system_mb_of(total_mb),
        used_mb=None if used is None else math.ceil(used),
        reason="" if total_mb else _NO_MEMORY,
        utilization_gpu_pct=number(told(record, "utilization.gpu"), 0, 100),
        memory_utilization_pct=percent(used, total),
        temperature_c=number(told(record, "temperature.gpu"), 0, 200),
        power_draw_w=number(told(record, "power.draw"), 0, 1e4),
        unified=is_unified(record),
        recovery_action=recovery_of(record),
        compute_mode=COMPUTE_MODES.get(told(record, "compute_mode").lower(), ""),
        processes=processes,
        unseen=unseen,
    )
    if fault is not None:
        return (quiet(device, fault),)
    return (divided(device, ()) if told(record, "mig.mode.current") == "Enabled" else device,)
