"""Processes on a GPU as NVML names them, with the share of time that each computed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from agent_sdk.state.telemetry import MAX_MB
from broker.devices.nvml.handle import MIB
from broker.devices.sample import NAMELESS, NOT_TOLD, GpuProcess, number

if TYPE_CHECKING:
    from broker.devices.nvml.handle import Handle

_COMPUTE = "nvmlDeviceGetComputeRunningProcesses"
_GRAPHICS = "nvmlDeviceGetGraphicsRunningProcesses"
_MPS = "nvmlDeviceGetMPSComputeRunningProcesses"

_AHEAD_US = 1_000_000  # tolerated lead of a driver's clock over ours

_MAX_PID = 2**22  # Linux gives out no higher one

_PARTS = frozenset({None, 2**32 - 1, *range(64)})
"""Identifiers of MIG instances, and those that stand for none."""

# No error, not found: no process computed.
_NOBODY: dict[int, tuple[object, ...]] = {0: (), 6: ()}


class Listed(NamedTuple):
    """Processes on a GPU, as the driver lists them.

    Attributes:
        processes: each once, by pid, with its largest memory in any list; None: not told.
        mps: whether MPS runs; None: not told.
        unseen: the reason for which processes are not told, or not all; empty: they are.
    """

    processes: tuple[GpuProcess, ...] | None
    mps: bool | None
    unseen: str = ""


def read_processes(gpu: Handle) -> Listed:
    """Return the processes on a GPU.

    Entries without a pid, as containers see those of others, are left out, and make what is left
    incomplete: their memory has an owner that cannot be known.
    """
    mps, compute = _listed(gpu, _MPS), _listed(gpu, _COMPUTE)
    runs = None if mps is None else bool(mps)
    if compute is None:
        return Listed(None, runs, NOT_TOLD.format("NVML"))
    found: dict[int, int | None] = {}
    computing, drawing = set[int](), set[int]()
    nameless = False
    for entries, of in (
        (compute, computing), (_listed(gpu, _GRAPHICS), drawing), (mps, computing),
    ):  # fmt: skip
        for entry in entries or ():
            pid = number(getattr(entry, "pid", None), 1, _MAX_PID)
            if pid is None:
                nameless = True
                continue
            memory_mb, known_mb = _memory_mb(entry), found.get(int(pid))
            found[int(pid)] = memory_mb if known_mb is None else max(known_mb, memory_mb or 0)
            of.add(int(pid))
    processes = tuple(
        GpuProcess(pid, memory_mb, draws=pid in drawing, computes=pid in computing)
        for pid, memory_mb in sorted(found.items())
    )
    if nameless:
        return Listed(processes or None, runs, NAMELESS)
    return Listed(processes, runs)


def _listed(gpu: Handle, function: str) -> list[object] | None:
    """Return the entries of a list of processes.

    Drivers 535.43 to 535.86 fill entries of 32 bytes where bindings expect 24, so that all but
    the first are shifted. The call before has the same entries in all drivers.
    """
    listed = gpu.ask(function)
    if not isinstance(listed, list):
        return None
    if not all(map(_credible, listed[1:])):
        before = gpu.ask(f"{function}_v2")
        if isinstance(before, list) and len(before) >= len(listed) - 1:
            return before
    return listed


def _credible(entry: object) -> bool:
    """Return whether an entry can be a process of Linux on a GPU, or on a part of one."""
    pid = number(getattr(entry, "pid", None), 1, _MAX_PID)
    parts = (getattr(entry, f"{kind}InstanceId", None) for kind in ("gpu", "compute"))
    return pid is not None and all(part in _PARTS for part in parts)


def _memory_mb(process: object) -> int | None:
    used = number(getattr(process, "usedGpuMemory", None), 0, MAX_MB * MIB)
    return None if used is None else -(-int(used) // MIB)


class Busy:
    """Time up to which each GPU's use was told: a sample asks only for later use."""

    def __init__(self) -> None:
        self._told_us: dict[str, int] = {}

    def mark(
        self, gpu: Handle, uuid: str, processes: tuple[GpuProcess, ...]
    ) -> tuple[GpuProcess, ...]:
        """Return the same processes, each with its mean use since the last reading.

        The driver names only processes that computed: the others have 0.0.
        """
        if not processes:
            return processes
        soon_us = int(time.time() * 1e6) + _AHEAD_US
        since_us = self._told_us.get(uuid, 0)
        if since_us > soon_us:  # the clock was set back: new readings would pass for old ones
            since_us = 0
        told = gpu.ask("nvmlDeviceGetProcessUtilization", since_us, means=_NOBODY)
        if not isinstance(told, (list, tuple)):
            return processes
        shares: dict[int, list[float]] = {}
        for use in told:
            share = number(getattr(use, "smUtil", None), 0, 100)
            if share is not None and 0 <= use.timeStamp <= soon_us:
                shares.setdefault(use.pid, []).append(share)
                since_us = max(since_us, use.timeStamp)
        self._told_us[uuid] = since_us
        return tuple(
            replace(process, busy_pct=_mean(shares.get(process.pid, [0.0])))
            for process in processes
        )


def _mean(shares: list[float]) -> float:
    return round(sum(shares) / len(shares), 1)
