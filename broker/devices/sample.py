"""Sample of this machine's GPUs, as every device source returns it.

Memory is in MiB: the total is rounded down, the used part up, so that rounding never
promises memory that is not there. A value that the driver cannot tell is None, never 0, and never
costs the GPU its row.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

from agent_sdk.keys import shortened

State = Literal["ok", "lost", "error", "mig"]

ComputeMode = Literal["", "default", "exclusive", "prohibited"]
"""Number of processes that may compute on a GPU: many, one, none; empty: not told."""

MAX_DEVICES = 1024

NOT_TOLD = "{} does not name the processes on this GPU"
NAMELESS = "some processes on this GPU have no pid here: those of other containers, or of a host"
"""Reasons for which processes are not told, or not all."""

_SYSTEM_MIN_MB = 256
_UUID = re.compile(r"[A-Za-z0-9._:/-]{1,80}", re.ASCII)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Process that the driver names on one GPU.

    Attributes:
        pid: on the host, which is ours only where `/proc` shows the host's processes.
        memory_mb: MiB allocated on that GPU, rounded up; None: the driver does not tell.
        busy_pct: share of the GPU's recent time that it computed, 0-100; None: unknown.
        draws: it has a graphics context, as programs of a desktop have.
        computes: it has a compute context.
    """

    pid: int
    memory_mb: int | None
    busy_pct: float | None = None
    draws: bool = False
    computes: bool = True

    @property
    def graphics_only(self) -> bool:
        """True if it draws and computes nothing."""
        return self.draws and not self.computes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """One GPU at the moment it was asked.

    uuid names it for good; index is its place in the driver's PCI order and may
    change with a reboot. ``lost`` wants a reset or a reboot, ``error`` may pass by itself; for
    both, identity and total are the last known and all other numbers are None. ``mig`` is divided
    into MIG devices, which are leased instead and have rows of their own. reason says in one
    sentence what is wrong; an ``ok`` device has one when its memory cannot be told.

    Attributes:
        processes: all that the driver names on it; None: it cannot tell.
        compute_mode: the limit of processes on it.
        one_lease: the reason for which it takes one lease at a time; empty: it may be shared.
        unseen: the reason for which processes are not told, or not all; empty: they are.
        xids: NVIDIA's error codes that came since the sample before.
        listed: False: the working driver no longer lists it; all values are then as last known.
        parent: the UUID of the GPU that a MIG device is a part of; else empty.
        runtime_id: its name for the runtime beside the UUID; empty: none that is certain.
        unified: the GPU has no memory of its own, and uses the machine's.
        mps: whether CUDA's Multi-Process Service runs on it; None: unknown.
        energy_mj: energy drawn since the driver was loaded, mJ; None: no counter tells.
        ecc_uncorrected: memory errors since the driver was loaded that ECC could not correct.
        rows_pending: memory rows wait for a reset to be remapped.
        rows_failed: memory rows cannot be remapped.
        recovery_action: NVML's: 0 = none, 1 = reset the GPU, 2 = reboot, 3 and more = as it says.
    """

    uuid: str
    index: int
    name: str
    model: str
    total_mb: int | None
    system_mb: int
    used_mb: int | None
    state: State = "ok"
    reason: str = ""
    simulated: bool = False
    utilization_gpu_pct: float | None = None
    memory_utilization_pct: float | None = None  # how full the memory is, not how busy its bus
    temperature_c: float | None = None
    power_draw_w: float | None = None
    pcie_tx_kb_s: float | None = None
    pcie_rx_kb_s: float | None = None
    nvml_mem_used_mb: float | None = None
    nvml_mem_total_mb: float | None = None
    nvml_gpu_util_pct: float | None = None
    nvml_mem_util_pct: float | None = None
    nvml_error: str | None = None
    energy_mj: int | None = None
    power_limit_w: float | None = None
    clock_sm_mhz: float | None = None
    clock_memory_mhz: float | None = None
    ecc_uncorrected: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None
    recovery_action: int | None = None
    unified: bool = False
    mps: bool | None = None
    listed: bool = True
    parent: str = ""
    runtime_id: str = ""
    compute_mode: ComputeMode = ""
    one_lease: str = ""
    processes: tuple[GpuProcess, ...] | None = None
    unseen: str = ""
    xids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """All GPUs of this machine, in index order.

    error says in one sentence what failed for the source as a whole. Devices that it knew and
    that have no answer of their own are then in state ``error``; it may have known none.

    Attributes:
        warnings: sentences for the operator about what works all the same.
        nvml_error: why NVML was not used although it was asked for; None: it was, or was not.
        began: when the driver was asked, on `time.monotonic`; None: when the sample was.
        late: the driver has not answered, and its answer is still waited for.
    """

    devices: tuple[DeviceSample, ...]
    source: Literal["nvml", "smi", "amd", "simulated", "scripted", "none"]
    error: str | None = None
    driver_version: str | None = None
    warnings: tuple[str, ...] = ()
    nvml_error: str | None = None
    began: float | None = field(default=None, compare=False)
    late: bool = False


class Source(Protocol):
    """Origin of samples, such as a driver.

    ``sample`` blocks for a bounded time and never raises for what a driver does; two callers
    take turns, so calling again after giving up on an answer is safe.
    """

    name: str

    def sample(self) -> Sample:
        """Ask for every GPU once."""

    def close(self) -> None:
        """Give back the held resources; no sample is asked for after that."""


@runtime_checkable
class Holding(Protocol):
    """Source that holds the driver between samples, so that no GPU can be reset."""

    def release(self) -> str:
        """Let go of the driver until the next sample; return why it could not, or an empty text."""


@runtime_checkable
class Limiting(Protocol):
    """Source through which the driver limits the GPU memory of cgroups."""

    def limits(self, wanted: Mapping[tuple[str, str], int | None]) -> dict[tuple[str, str], str]:
        """Set limits, in MiB by GPU and cgroup, and lift those that are None; return why not."""


def system_mb_of(total_mb: int | None) -> int:
    """Return the MiB of a real device that no lease may take: 3 %, at least 256."""
    return max(_SYSTEM_MIN_MB, -(-(total_mb or 0) * 3 // 100))


def percent(used: float | None, total: float | None) -> float | None:
    """Return the used share of the total in percent, with two decimals."""
    return None if used is None or not total else round(100.0 * used / total, 2)


def number(value: object, low: float, high: float) -> float | None:
    """Return the value as a float, or None unless it is a number within [low, high].

    Drivers say "unknown" as all ones, NaN or a word in brackets.
    """
    if not isinstance(value, (int, float, str)):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) and low <= parsed <= high else None


def text(value: object) -> str:
    """Return a driver's string as one line of printable ASCII.

    The library's version decides about bytes or str, and a failing card gives garbage; the text
    ends up in the store, in logs and on pages.
    """
    raw = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return " ".join(re.sub(r"[^ -~]", "?", re.sub(r"\s", " ", raw)).split())


def name_of(value: object) -> str:
    """Return a device's name for people."""
    return shortened(text(value), 96) or "Unknown GPU"


def uuid_of(value: object) -> str:
    """Return a device's UUID, or "" when it may not become part of a key."""
    uuid = text(value)
    return uuid if _UUID.fullmatch(uuid) else ""


def label_of(host: str) -> str:
    """Return a host's name as part of a device id."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", host)[:64]
