"""Source of samples through nvidia-smi, for machines where this process does not open NVML."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import signal
import subprocess
import threading
import time

from agent_sdk.state.telemetry import MAX_MB
from broker.devices.last_known import Fault, Known, quiet
from broker.devices.sample import (
    MAX_DEVICES,
    DeviceSample,
    GpuProcess,
    Sample,
    model_of,
    name_of,
    number,
    percent,
    system_mb_of,
    text,
    uuid_of,
)
from broker.devices.smi.table import lines, records_of, told

# Long-standing fields only: a field unknown to the driver fails the whole query.
_QUERY = (
    "index,uuid,name,driver_version,memory.total,memory.used,"
    "utilization.gpu,temperature.gpu,power.draw"
)
_PROCESSES = "gpu_uuid,pid,used_memory"
_NO_MEMORY = "nvidia-smi does not tell how much memory this GPU has"
_UNLISTED = Fault("lost", "nvidia-smi no longer lists this GPU", gone=True)


class SmiSource:
    """Source of samples through the nvidia-smi program at `binary`.

    sample() answers within the timeout plus one second. A program that cannot be killed (it
    waits in the kernel for a GPU) is left behind, and no other is started until it has ended.
    Rows printed before a failure are kept; devices without one are then in state ``error``.
    The processes that compute are asked for in what is left of the timeout; when that fails, they
    are unknown and the sample stands.
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
            until = time.monotonic() + self._timeout_s
            try:
                status, printed, complained = self._run(f"--query-gpu={_QUERY}", self._timeout_s)
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

    def _run(self, query: str, timeout_s: float) -> tuple[int, str, str]:
        process = subprocess.Popen(  # noqa: S603 - the operator's own PATH names the program
            [self._binary, query, "--format=csv,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        began = time.monotonic()
        try:
            printed, complained = process.communicate(timeout=timeout_s)
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
        processes = self._processes(until) if records else None
        answers: dict[int, tuple[DeviceSample, ...] | Fault] = {}
        for record in records or ():
            index = number(record.get("index"), 0, MAX_DEVICES - 1)
            if index is not None:
                answers[int(index)] = _device(int(index), record, processes)
                self._driver = told(record, "driver_version") or self._driver
        if status == 0 and printed.strip() and not remarks:
            return Sample(self._known.merge(answers, _UNLISTED), "smi", None, self._driver)
        remark = next(iter([*lines(complained), *remarks]), f"exit status {status}, no output")
        why = f"nvidia-smi failed: {remark}"
        return Sample(self._known.merge(answers, Fault("error", why)), "smi", why, self._driver)

    def _processes(self, until: float) -> dict[str, dict[int, int | None]] | None:
        """Return the MiB of each process by GPU and pid; None: nvidia-smi does not tell in time."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            return None
        try:
            status, printed, _ = self._run(f"--query-compute-apps={_PROCESSES}", left_s)
            records, remarks = records_of(printed, frozenset({"gpu_uuid", "pid"}))
        except (OSError, subprocess.TimeoutExpired, csv.Error):
            return None
        if status != 0 or records is None or remarks:
            return None
        found: dict[str, dict[int, int | None]] = {}
        for record in records:
            pid = number(told(record, "pid"), 1, 2**31)
            if pid is not None:
                on_gpu = found.setdefault(uuid_of(told(record, "gpu_uuid")), {})
                known_mb, memory_mb = on_gpu.get(int(pid)), _used_mb(record)
                on_gpu[int(pid)] = memory_mb if known_mb is None else max(known_mb, memory_mb or 0)
        return found


def _used_mb(record: dict[str, str]) -> int | None:
    """Return the used MiB; newer programs name the column by another word than the query."""
    used = told(record, "used_gpu_memory") or told(record, "used_memory")
    used_mb = number(used, 0, MAX_MB)
    return None if used_mb is None else math.ceil(used_mb)


def _device(
    index: int, record: dict[str, str], processes: dict[str, dict[int, int | None]] | None
) -> tuple[DeviceSample, ...] | Fault:
    lost = any("gpu is lost" in cell.lower() for cell in record.values())
    fault = Fault("lost", "nvidia-smi says that this GPU is lost: reset it or reboot")
    uuid = uuid_of(told(record, "uuid"))
    if not uuid:
        return fault if lost else Fault("error", "nvidia-smi gives this GPU no usable UUID")
    total = number(told(record, "memory.total"), 1, MAX_MB)
    used = number(told(record, "memory.used"), 0, MAX_MB)
    total_mb = None if total is None else math.floor(total)
    name = name_of(told(record, "name"))
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
        processes=None
        if processes is None
        else tuple(GpuProcess(pid, mb) for pid, mb in sorted(processes.get(uuid, {}).items())),
    )
    return (quiet(device, fault) if lost else device,)
