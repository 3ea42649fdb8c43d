"""Processes that compute, as nvidia-smi lists them; those that only draw it does not list."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_sdk.state.telemetry import MAX_MB
from broker.devices.sample import NAMELESS, NOT_TOLD, GpuProcess, number, uuid_of
from broker.devices.smi.gpus import CSV
from broker.devices.smi.program import SmiError
from broker.devices.smi.remarks import failure
from broker.devices.smi.table import lines, records_of, told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.sample import ComputeMode
    from broker.devices.smi.gpus import GpuAnswers
    from broker.devices.smi.program import SmiProgram

QUERY: Final = "--query-compute-apps=gpu_uuid,pid,used_memory"

COMPUTE_MODES: Final[Mapping[str, ComputeMode]] = {
    "default": "default",
    "exclusive_thread": "exclusive",
    "exclusive_process": "exclusive",
    "prohibited": "prohibited",
}
"""Compute modes by nvidia-smi's words, in lower case."""

SILENT: Final = NOT_TOLD.format("nvidia-smi")

LATE: Final = "nvidia-smi does not name the processes in time"

_MAX_PID: Final = 2**22


@dataclass(frozen=True, slots=True)
class Apps:
    """Processes that compute.

    Attributes:
        found: the processes by the UUID of the GPU, or of the part, that they are on.
        nameless: UUIDs on which some have no pid; empty in it: on which GPU is not told.
        unseen: the reason for which no process is told; empty: they are.
    """

    found: Mapping[str, tuple[GpuProcess, ...]] = field(default_factory=dict)
    nameless: frozenset[str] = frozenset()
    unseen: str = ""

    def on(self, uuid: str) -> tuple[tuple[GpuProcess, ...] | None, str]:
        """Return the processes on a device, and why they are not told, or not all; see `sample`."""
        if self.unseen:
            return None, self.unseen
        processes = self.found.get(uuid, ())
        if self.nameless & {uuid, ""}:
            return processes or None, NAMELESS
        return processes, ""


def read_apps(program: SmiProgram, gpus: GpuAnswers) -> Apps:
    """Ask for the processes on the GPUs that were told, and return them, or why they are not."""
    which = ("-i", ",".join(gpus.only)) if gpus.only else ()
    try:
        answer = program.ask(QUERY, CSV, *which)
        records, remarks = records_of(answer.out, frozenset({"gpu_uuid", "pid"}))
    except (SmiError, csv.Error) as error:
        return Apps(unseen=f"{SILENT}: {error}")
    if records is None or not gpus.bears(answer, remarks):
        said = failure(answer.status, [*lines(answer.err), *remarks])
        return Apps(unseen=f"{SILENT}: {said.removeprefix('nvidia-smi failed: ')}")
    found: dict[str, dict[int, int | None]] = {}
    nameless = set()
    for record in records:
        uuid, pid = uuid_of(told(record, "gpu_uuid")), number(told(record, "pid"), 1, _MAX_PID)
        if pid is None or not uuid:
            nameless.add(uuid)
        if pid is not None:
            on_gpu = found.setdefault(uuid, {})
            known_mb, memory_mb = on_gpu.get(int(pid)), _used_mb(record)
            on_gpu[int(pid)] = memory_mb if known_mb is None else max(known_mb, memory_mb or 0)
    rows = {
        uuid: tuple(GpuProcess(pid, mb) for pid, mb in sorted(on_gpu.items()))
        for uuid, on_gpu in found.items()
    }
    return Apps(rows, frozenset(nameless))


def _used_mb(record: dict[str, str]) -> int | None:
    """Return the used MiB; newer programs name the column by another word than the query."""
    used = told(record, "used_gpu_memory") or told(record, "used_memory")
    used_mb = number(used, 0, MAX_MB)
    return None if used_mb is None else math.ceil(used_mb)
