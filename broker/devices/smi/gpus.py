"""Query for the GPUs: all at once, or those that can be opened where one of them cannot."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker.devices.sample import MAX_DEVICES, number, uuid_of
from broker.devices.smi.remarks import are_warnings, bus_of, failure, fallen
from broker.devices.smi.table import lines, records_of, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.devices.last_known import Fault
    from broker.devices.smi.program import Printed, SmiProgram

    Record = dict[str, str]

CSV: Final = "--format=csv,nounits"

FIELDS: Final = (
    "index", "uuid", "name", "driver_version", "memory.total", "memory.used", "utilization.gpu",
    "temperature.gpu", "power.draw",
)  # fmt: skip

OPTIONAL: Final = (
    "count", "pci.bus_id", "persistence_mode", "compute_mode", "mig.mode.current",
    "gpu_recovery_action", "display_active",
)  # fmt: skip
"""Fields that one version or another lacks: an unknown one fails the query, and is left out."""

AGAIN_S: Final = 60.0
"""Seconds after which GPUs are asked for one by one again, where that has found none."""

MOST: Final = 64
"""Most GPUs that are asked for one by one."""

CORRUPT_INFOROM: Final = 14
"""Exit status beside complete rows: a GPU's infoROM is corrupt."""

_NO_OTHER: Final = "nvidia-smi tells of no other GPU while one cannot be opened: {}"

_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')


@dataclass(slots=True)
class GpuAnswers:
    """Answers of one look.

    Attributes:
        rows: the record of each GPU, by index.
        faults: of GPUs that cannot be opened, by index.
        error: why other GPUs, or all, have no row; empty: there are none.
        warnings: lines of the program beside complete rows.
        only: the UUIDs that were asked for alone, since another GPU fails every query for all.
        status: the exit status with which all rows came.
        took_s: seconds of the first query.
    """

    rows: dict[int, Record] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    error: str = ""
    warnings: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    status: int = 0
    took_s: float = 0.0

    def bears(self, answer: Printed, remarks: Sequence[str]) -> bool:
        """Tell whether another answer fails in no way in which the complete rows did not."""
        return answer.status in {0, self.status} and set(remarks) <= set(self.warnings)


@dataclass(slots=True)
class _Answer:
    """One answer to the query: its rows by index, and its lines that are none."""

    printed: Printed
    rows: dict[int, Record]
    remarks: list[str]

    @property
    def lines(self) -> list[str]:
        return [*lines(self.printed.err), *self.remarks]


class GpuQuery:
    """Query for the GPUs of this machine, with the memory of where each one was."""

    def __init__(self, program: SmiProgram) -> None:
        self._program = program
        self._optional = list(OPTIONAL)
        self._places: dict[str, tuple[int, str]] = {}  # index and UUID by bus id
        self._fruitless_at: float | None = None

    def ask(self) -> GpuAnswers:
        """Ask for all GPUs, and once more for the others if one cannot be opened.

        Raises:
            SmiError: the program cannot be asked.
            csv.Error: it prints no table.
        """
        answer = self._one()
        faults = fallen(answer.lines)
        if faults:
            return self._others(answer, faults)
        status = answer.printed.status
        result = GpuAnswers(answer.rows, status=status, took_s=answer.printed.took_s)
        if status == 0 and answer.printed.out.strip() and not answer.remarks:
            if 0 < len(answer.rows) < (count := _count(answer)):
                result.warnings = (f"it counts {count} GPUs, and tells of {len(answer.rows)}",)
            return result
        if _is_complete(answer):
            said = answer.lines or [f"nvidia-smi ends with exit status {status}"]
            result.warnings = tuple(said)
        else:
            result.error = failure(status, answer.lines)
        return result

    def _one(self, *only: str) -> _Answer:
        """Ask once, with the fields that this program knows; `only`: UUIDs or an index."""
        while True:
            query = f"--query-gpu={','.join([*FIELDS, *self._optional])}"
            which = ("-i", ",".join(only)) if only else ()
            printed = self._program.ask(query, CSV, *which)
            unknown = _UNKNOWN_FIELD.search(printed.out)
            if unknown is None or unknown[1] not in self._optional:
                break
            self._optional.remove(unknown[1])
        records, remarks = records_of(printed.out, frozenset({"index", "uuid"}))
        rows: dict[int, Record] = {}
        for record in records or ():
            index = number(record.get("index"), 0, MAX_DEVICES - 1)
            if index is not None:
                rows[int(index)] = record
                uuid, bus = uuid_of(told(record, "uuid")), bus_of(told(record, "pci.bus_id"))
                if uuid and bus:
                    self._places[bus] = int(index), uuid
        return _Answer(printed, rows, remarks)

    def _others(self, answer: _Answer, faults: dict[str, Fault]) -> GpuAnswers:
        """Ask for the GPUs beside those that cannot be opened, by bus id in `faults`."""
        rows, printed = dict(answer.rows), answer.printed
        while missing := self._missing(rows, faults):
            more = self._one(*missing)
            rows |= more.rows
            if not (new := fallen(more.lines).items() - faults.items()):
                break
            faults |= dict(new)
        placed = {self._places[bus][0]: of for bus, of in faults.items() if bus in self._places}
        unplaced = [of for bus, of in faults.items() if bus not in self._places]
        if unplaced or self._missing(rows, faults):
            placed |= self._one_by_one(rows)
            unplaced = [of for of in unplaced if of not in placed.values()]
        placed = {index: of for index, of in placed.items() if index not in rows}
        error = "; ".join(of.reason for of in unplaced)
        if not error and self._missing(rows, faults):
            error = _NO_OTHER.format(next(iter(faults.values())).reason)
        only = tuple(filter(None, (uuid_of(told(row, "uuid")) for row in rows.values())))
        return GpuAnswers(rows, placed, error, only=only, took_s=printed.took_s)

    def _missing(self, rows: dict[int, Record], faults: dict[str, Fault]) -> list[str]:
        """Return the UUIDs of known GPUs that have neither a row nor a fault."""
        return [
            uuid
            for bus, (index, uuid) in self._places.items()
            if bus not in faults and index not in rows
        ]

    def _one_by_one(self, rows: dict[int, Record]) -> dict[int, Fault]:
        """Ask for each index; add the rows, and return the faults of those without."""
        if self._fruitless_at is not None and time.monotonic() - self._fruitless_at < AGAIN_S:
            return {}
        found: dict[int, Fault] = {}
        alone: dict[int, Record] = {}
        seen = set[str]()
        for index in range(MOST):
            answer = self._one(str(index))
            faults = fallen(answer.lines)
            if index in answer.rows:
                alone[index] = answer.rows[index]
            elif not faults or seen & faults.keys():
                break  # there is no such GPU, or the program says the same of each
            else:
                seen |= faults.keys()
                found[index] = next(iter(faults.values()))
        rows |= alone
        self._fruitless_at = None if alone else time.monotonic()
        return found if alone else {}


def _is_complete(answer: _Answer) -> bool:
    """Tell whether each GPU has its row, and all else is a remark beside."""
    if not answer.rows:
        return False
    if count := _count(answer):
        return len(answer.rows) >= count
    said = answer.lines
    return are_warnings(said) and (bool(said) or answer.printed.status == CORRUPT_INFOROM)


def _count(answer: _Answer) -> int:
    """Return how many GPUs the program counts; 0: it does not tell."""
    counts = [number(told(row, "count"), 1, MAX_DEVICES) for row in answer.rows.values()]
    return int(max(filter(None, counts), default=0)) if None not in counts else 0
