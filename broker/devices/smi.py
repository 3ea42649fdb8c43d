"""GPUs through nvidia-smi, for machines where this process does not open NVML."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import signal
import subprocess
import threading
import time

from broker.devices.known import Fault, Known, quiet
from broker.devices.sample import (
    MAX_DEVICES,
    MAX_MB,
    DeviceSample,
    Sample,
    model_of,
    name_of,
    number,
    percent,
    reserve_of,
    text,
    uuid_of,
)

# Long-standing fields only: one that a driver does not know fails the whole query.
_QUERY = (
    "index,uuid,name,driver_version,memory.total,memory.used,"
    "utilization.gpu,temperature.gpu,power.draw"
)
_NO_MEMORY = "nvidia-smi does not tell how much memory this GPU has"
_UNLISTED = Fault("lost", "nvidia-smi no longer lists this GPU")


class SmiSource:
    """Samples through the nvidia-smi program at `binary`.

    sample() answers within the timeout plus one second. A program that cannot be killed (it
    waits in the kernel for a GPU) is left behind, and no other is started until it has ended.
    Rows printed before a failure are kept; devices without one are then in state ``error``.
    """

    name = "smi"

    def __init__(self, host: str, binary: str, *, timeout_s: float = 5.0) -> None:
        self._binary = binary
        self._timeout_s = timeout_s
        self._known = Known(host)
        self._turn = threading.Lock()
        self._driver: str | None = None
        self._stuck: subprocess.Popen[str] | None = None
        self._stuck_at = 0.0  # monotonic

    def sample(self) -> Sample:
        """Ask for every GPU once."""
        with self._turn:
            if self._stuck is not None and self._stuck.poll() is None:
                age_s = time.monotonic() - self._stuck_at
                return self._failed(f"nvidia-smi has not answered for {age_s:.1f} s")
            self._stuck = None
            try:
                status, printed, complained = self._run()
            except OSError as error:
                return self._failed(f"nvidia-smi cannot be started: {text(error.strerror)}")
            except subprocess.TimeoutExpired:
                return self._failed(f"nvidia-smi has not answered for {self._timeout_s:.1f} s")
            try:
                return self._understood(status, printed, complained)
            except csv.Error as error:
                return self._failed(f"nvidia-smi printed no table: {error}")

    def close(self) -> None:
        """Nothing is held between samples."""

    def _failed(self, why: str) -> Sample:
        return Sample(self._known.merge({}, Fault("error", why)), "smi", why, self._driver)

    def _run(self) -> tuple[int, str, str]:
        process = subprocess.Popen(  # noqa: S603 - the operator's own PATH names the program
            [self._binary, f"--query-gpu={_QUERY}", "--format=csv,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        began = time.monotonic()
        try:
            printed, complained = process.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            self._leave(process, began)
            raise
        return process.returncode, printed, complained

    def _leave(self, process: subprocess.Popen[str], began: float) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._stuck, self._stuck_at = process, began

    def _understood(self, status: int, printed: str, complained: str) -> Sample:
        records, remarks = _records(printed)
        answers: dict[int, DeviceSample | Fault] = {}
        for record in records:
            index = number(record.get("index"), 0, MAX_DEVICES - 1)
            if index is not None:
                answers[int(index)] = _device(int(index), record)
                self._driver = _told(record, "driver_version") or self._driver
        if status == 0 and printed.strip() and not remarks:
            return Sample(self._known.merge(answers, _UNLISTED), "smi", None, self._driver)
        remark = next(iter([*_lines(complained), *remarks]), f"exit status {status}, no output")
        why = f"nvidia-smi failed: {remark}"
        return Sample(self._known.merge(answers, Fault("error", why)), "smi", why, self._driver)


def _lines(printed: str) -> list[str]:
    return [text(line)[:200] for line in printed.splitlines() if text(line)]


def _records(printed: str) -> tuple[list[dict[str, str]], list[str]]:
    """The rows under the header, by column name, and the lines that are no rows.

    nvidia-smi does not quote: a comma in a name makes the row longer than the header.
    """
    header: list[str] = []
    records: list[dict[str, str]] = []
    remarks: list[str] = []
    for row in csv.reader(printed.splitlines(), skipinitialspace=True):
        cells = [cell.strip() for cell in row]
        if not header and "uuid" in cells and "index" in cells:
            header = [cell.split(" [")[0] for cell in cells]
        elif not header or len(cells) < len(header):
            remarks += _lines(", ".join(cells))
        else:
            if "name" in header and len(cells) > len(header):
                at, end = header.index("name"), header.index("name") + len(cells) - len(header) + 1
                cells[at:end] = [", ".join(cells[at:end])]
            records.append(dict(zip(header, cells, strict=False)))
    return records, remarks


def _told(record: dict[str, str], column: str) -> str:
    """The cell, or "" for `[N/A]`, `N/A`, `[Not Supported]`, `ERR!` and their like."""
    cell = text(record.get(column))
    return "" if cell.startswith("[") or cell in {"N/A", "ERR!"} else cell


def _device(index: int, record: dict[str, str]) -> DeviceSample | Fault:
    lost = any("gpu is lost" in cell.lower() for cell in record.values())
    fault = Fault("lost", "nvidia-smi says that this GPU is lost: reset it or reboot")
    uuid = uuid_of(_told(record, "uuid"))
    if not uuid:
        return fault if lost else Fault("error", "nvidia-smi gives this GPU no usable UUID")
    total = number(_told(record, "memory.total"), 1, MAX_MB)
    used = number(_told(record, "memory.used"), 0, MAX_MB)
    total_mb = None if total is None else math.floor(total)
    name = name_of(_told(record, "name"))
    device = DeviceSample(
        uuid=uuid,
        index=index,
        name=name,
        model=model_of(name),
        total_mb=total_mb,
        reserve_mb=reserve_of(total_mb),
        used_mb=None if used is None else math.ceil(used),
        reason="" if total_mb else _NO_MEMORY,
        utilization_gpu_pct=number(_told(record, "utilization.gpu"), 0, 100),
        memory_utilization_pct=percent(used, total),
        temperature_c=number(_told(record, "temperature.gpu"), 0, 200),
        power_draw_w=number(_told(record, "power.draw"), 0, 1e4),
    )
    return quiet(device, fault) if lost else device
