"""Row of one GPU of AMD, of what its driver's books, its sensors and its processes tell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import model_of
from broker.devices.amd.card import value
from broker.devices.amd.files import down_mb, told, up_mb
from broker.devices.amd.names import name
from broker.devices.sample import DeviceSample, GpuProcess, name_of, percent, system_mb_of

if TYPE_CHECKING:
    from pathlib import Path

    from broker.devices.amd.card import Books, Sensors
    from broker.devices.amd.processes import Holdings
    from broker.devices.amd.topology import Gpu

UNEXPLAINED_MB: Final = 512
"""MiB in use beyond all processes that are known: the driver itself has up to 300."""

LEAST_SIMDS: Final = 16
"""SIMD units of a processor's graphics that is worth a lease: a desktop's has 4."""

UNTOLD: Final = "the use of a partition is not told: one lease at a time"

HELPER: Final = "graphics of the processor: not leased beside another GPU, nor when it is tiny"

NO_COMPUTE: Final = "the kernel's compute driver (KFD) does not know this GPU: not leased"


def row(
    root: Path,
    gpu: Gpu,
    uuid: str,
    index: int,
    books: Books,
    holds: Holdings | None,
    *,
    alone: bool,
) -> DeviceSample:
    """Return a GPU without its sensors.

    `holds` is None where the processes' memory cannot be told in time. `alone`: no other GPU of
    this machine has memory of its own.
    """
    called = name_of(name(root, gpu))
    helper = books.integrated and not (alone and gpu.simds >= LEAST_SIMDS)
    why = HELPER if helper else NO_COMPUTE if gpu.ordinal is None else ""
    total, used = _memory(root, gpu, books, holds, shared=books.integrated and not helper)
    processes, unseen = _processes(gpu, books, holds, used)
    return DeviceSample(
        uuid=uuid,
        index=index,
        name=called,
        model=model_of(called),
        total_mb=total,
        system_mb=(total or 0) if why else system_mb_of(total),
        used_mb=used,
        reason=why,
        memory_utilization_pct=percent(used, total),
        parent=uuid.rpartition("/")[0] if gpu.part is not None else "",
        runtime_id=gpu.token,
        unified=books.integrated and not helper,
        one_lease=UNTOLD if gpu.part is not None else "",
        processes=processes,
        unseen=unseen,
    )


def _memory(
    root: Path, gpu: Gpu, books: Books, holds: Holdings | None, *, shared: bool
) -> tuple[int | None, int | None]:
    """Return total and used MiB; a partition's use is what KFD's processes hold, or unknown."""
    if gpu.part is not None:
        on_node = holds.by_node.get(gpu.gpu_id, {}) if holds is not None else {}
        return down_mb(gpu.bank or None), up_mb(sum(on_node.values()) or None)
    if not shared:
        return down_mb(books.vram_total), up_mb(books.vram_used)
    machine = _meminfo(root)
    sizes = [size for size in (books.vram_total, books.gtt_total) if size is not None]
    total = max(sizes, default=None)
    if total is not None and (all_kib := machine.get("MemTotal")):
        total = min(total, all_kib * 1024 + (books.vram_total or 0))
    used = None
    if books.vram_used is not None and books.gtt_used is not None:
        used = books.vram_used + books.gtt_used
        if total is not None and (left_kib := machine.get("MemAvailable")) is not None:
            used = max(used, total - left_kib * 1024)
    return down_mb(total), up_mb(used)


def _meminfo(root: Path) -> dict[str, int]:
    """Return the KiB of each line of /proc/meminfo."""
    found = {}
    for line in told(root / "proc/meminfo").splitlines():
        label, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[label] = int(words[0])
    return found


def _processes(
    gpu: Gpu, books: Books, holds: Holdings | None, used_mb: int | None
) -> tuple[tuple[GpuProcess, ...] | None, str]:
    """Return the processes that use a GPU, and why not, or not all of them, can be told."""
    if holds is None:
        return None, "the files of the processes have not answered in time"
    if not (gpu.named or holds.kfd or holds.descriptors):
        return None, "this kernel names no processes on a GPU"
    computing = dict(holds.by_node.get(gpu.gpu_id, {})) if gpu.gpu_id else {}
    sizes = dict(computing)
    if gpu.part is None:
        for pid, (vram, gtt) in holds.by_card.get(gpu.pdev, {}).items():
            size = vram + gtt if books.integrated else vram
            sizes[pid] = max(sizes.get(pid, 0), size)
        if used_mb is None:
            return None, "the driver does not tell how much of its memory is used"
        beyond_mb = used_mb - (sum(sizes.values()) >> 20)
        if not books.integrated and beyond_mb > UNEXPLAINED_MB:
            return None, f"no process that can be seen here explains {beyond_mb} MiB in use"
    return tuple(
        GpuProcess(
            pid, up_mb(size), draws=pid not in computing, computes=not holds.kfd or pid in computing
        )
        for pid, size in sorted(sizes.items())
        if size > 0
    ), ""


def with_sensors(device: DeviceSample, gpu: Gpu, books: Books, sensors: Sensors) -> DeviceSample:
    """Return a GPU with what its sensors tell; a partition has none of its own but the heat."""
    temperature = value(sensors.temperature_mc, 1000)
    busy, power, cap = (
        (None, None, None)
        if gpu.part is not None
        else (
            value(sensors.busy_pct),
            None if books.integrated else value(sensors.power_uw, 1e6),
            value(sensors.cap_uw, 1e6),
        )
    )
    return replace(
        device,
        utilization_gpu_pct=busy,
        temperature_c=temperature,
        power_draw_w=power,
        power_limit_w=cap,
        ecc_uncorrected=sensors.uncorrected,
    )
