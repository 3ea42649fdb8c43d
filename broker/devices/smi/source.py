"""Source of samples through nvidia-smi, for machines where this process does not open NVML."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import replace

from agent_sdk.keys import model_of
from agent_sdk.state.telemetry import MAX_MB
from broker.devices.last_known import Fault, Known, quiet
from broker.devices.nvml.mig import divided
from broker.devices.sample import (
    MAX_DEVICES,
    DeviceSample,
    Sample,
    name_of,
    number,
    percent,
    system_mb_of,
    text,
    uuid_of,
)
from broker.devices.smi.mig import UNTOLD, memory_of, parts_of, rows_of
from broker.devices.smi.processes import COMPUTE_MODES, LATE, QUERY, SILENT, Apps, apps_of
from broker.devices.smi.table import lines, records_of, told
from broker.devices.smi.words import fault_of, is_unified
from broker.devices.unified import Unified

_QUERY = (
    "index,uuid,name,driver_version,memory.total,memory.used,"
    "utilization.gpu,temperature.gpu,power.draw"
)
_NEWER = ("compute_mode", "mig.mode.current")
"""Further fields: one that the program does not know fails the query, and is left out."""
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')
_CSV = "--format=csv,nounits"
_NO_MEMORY = "nvidia-smi does not tell how much memory this GPU has"
_UNLISTED = Fault("lost", "nvidia-smi no longer lists this GPU", gone=True)


class SmiSource:
    """Source of samples through the nvidia-smi program at `binary`.

    sample() answers within the timeout plus one second. A program that cannot be killed (it
    waits in the kernel for a GPU) is left behind, and no other is started until it has ended.
    Rows printed before a failure are kept; devices without one are then in state ``error``.
    The processes that compute are asked for in what is left of the timeout, and the MIG devices of
    divided GPUs; when that fails, they are unknown and the sample stands.
    """

    name = "smi"

    def __init__(
        self, host: str, binary: str, *, timeout_s: float = 5.0, unified: Unified | None = None
    ) -> None:
        self._binary = binary
        self._timeout_s = timeout_s
        self._known = Known(host)
        self._unified = unified or Unified()
        self._newer = list(_NEWER)
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
            until = time.monotonic() + self._timeout_s
            try:
                status, printed, complained = self._query(until)
            except OSError as error:
                return self._failed(f"nvidia-smi cannot be started: {text(error.strerror)}")
            except subprocess.TimeoutExpired:
                return self._failed(f"nvidia-smi has not answered for {self._timeout_s:.1f} s")
            try:
                return self._understood(status, printed, complained, until)
            except csv.Error as error:
                return self._failed(f"nvidia-smi printed no table: {error}")

    def close(self) -> None:
        """Do nothing: no resource is held between samples."""

    def _failed(self, why: str) -> Sample:
        return Sample(self._known.merge({}, Fault("error", why)), "smi", why, self._driver)

    def _query(self, until: float) -> tuple[int, str, str]:
        """Ask for the GPUs, with the fields that this program knows."""
        while True:
            fields = ",".join([_QUERY, *self._newer])
            answer = self._run(until - time.monotonic(), f"--query-gpu={fields}", _CSV)
            unknown = _UNKNOWN_FIELD.search(answer[1])
            if unknown is None or unknown[1] not in self._newer:
                return answer
            self._newer.remove(unknown[1])

    def _run(self, timeout_s: float, *arguments: str) -> tuple[int, str, str]:
        process = subprocess.Popen(  # noqa: S603 - the operator's own PATH names the program
            [self._binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        began = time.monotonic()
        try:
            printed, complained = process.communicate(timeout=max(0.0, timeout_s))
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

    def _understood(self, status: int, printed: str, complained: str, until: float) -> Sample:
        records, remarks = records_of(printed, frozenset({"index", "uuid"}))
        processes = self._processes(until) if records else Apps(unseen=SILENT)
        answers: dict[int, tuple[DeviceSample, ...] | Fault] = {}
        for record in records or ():
            index = number(record.get("index"), 0, MAX_DEVICES - 1)
            if index is not None:
                answers[int(index)] = _device(int(index), record, processes)
                self._driver = told(record, "driver_version") or self._driver
        self._add_parts(answers, processes, until)
        answers = self._unified.fill(answers)
        if status == 0 and printed.strip() and not remarks:
            return Sample(self._known.merge(answers, _UNLISTED), "smi", None, self._driver)
        remark = next(iter([*lines(complained), *remarks]), f"exit status {status}, no output")
        why = f"nvidia-smi failed: {remark}"
        return Sample(self._known.merge(answers, Fault("error", why)), "smi", why, self._driver)

    def _add_parts(
        self,
        answers: dict[int, tuple[DeviceSample, ...] | Fault],
        processes: Apps,
        until: float,
    ) -> None:
        """Add the MIG devices of divided GPUs to their answers; without a list, say so."""
        gpus = {i: a[0] for i, a in answers.items() if not isinstance(a, Fault)}
        whole = {i: gpu for i, gpu in gpus.items() if gpu.state == "mig"}
        if not whole:
            return
        status, printed = self._printed(until, "-L")
        listed = parts_of(printed)
        memory = memory_of(self._printed(until, "-q", "-x")[1]) if listed else {}
        for index, gpu in whole.items():
            parts = listed.get(gpu.uuid)
            rows = tuple(rows_of(gpu, parts or [], memory, processes))
            named = {row.uuid for row in rows}
            if parts is None or status != 0:
                still = self._known.parts_of(gpu.uuid, Fault("error", UNTOLD))
                rows += tuple(row for row in still if row.uuid not in named)
            whole_gpu = divided(gpu, rows) if parts is not None else replace(gpu, reason=UNTOLD)
            answers[index] = (whole_gpu, *rows)

    def _printed(self, until: float, *arguments: str) -> tuple[int, str]:
        """Return the exit status and what is printed; -1 and nothing: it does not end in time."""
        try:
            return self._run(until - time.monotonic(), *arguments)[:2]
        except (OSError, subprocess.TimeoutExpired):
            return -1, ""

    def _processes(self, until: float) -> Apps:
        """Return the processes that compute, or why nvidia-smi does not tell them."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            return Apps(unseen=LATE)
        try:
            status, printed, _ = self._run(left_s, f"--query-compute-apps={QUERY}", _CSV)
            return apps_of(status, printed)
        except subprocess.TimeoutExpired:
            return Apps(unseen=LATE)
        except (OSError, csv.Error):
            return Apps(unseen=SILENT)


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
        compute_mode=COMPUTE_MODES.get(told(record, "compute_mode").lower(), ""),
        processes=processes,
        unseen=unseen,
    )
    if fault is not None:
        return (quiet(device, fault),)
    return (divided(device, ()) if told(record, "mig.mode.current") == "Enabled" else device,)
