"""Memory of integrated GPUs: it is the machine's own, and the machine tells of it, not the driver.

Of a DGX Spark (GB10) and of Jetsons (Orin, Thor, Xavier) NVML and nvidia-smi say that memory is not
supported, or they count what the system could reclaim at once, such as its page cache, as used.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.devices.last_known import Fault, quiet
from broker.devices.sample import percent, system_mb_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.sample import DeviceSample

    Answer = tuple[DeviceSample, ...] | Fault
    """A GPU with its MIG devices, or the fault that kept it from being read."""

MEMINFO: Final = Path("/proc/meminfo")

INTEGRATED: Final = re.compile(r"\b(GB10|Orin|Thor|Xavier|Tegra|nvgpu)\b", re.IGNORECASE)
"""Names of GPUs that have no memory of their own."""

OWN_MEMORY: Final = re.compile(
    r"\b(GeForce|RTX|GTX|Quadro|Tesla|TITAN|GRID|NVS|CMP|DRIVE|Graphics Device|PG\d+|MX\d+|"
    r"[ABHKLMPTV]\d{1,4}[A-Z]*|GH200|GB200|GB300)\b",
    re.IGNORECASE,
)
"""Names of GPUs with memory of their own: one whose driver does not tell it is in trouble."""

SILENT: Final = "its driver no longer tells how much memory this GPU has"

ALL_OF_IT: Final = 0.9
"""Share of the machine's memory from which on an integrated GPU's total means the machine's."""


class HostMemory(NamedTuple):
    """Memory of this machine, MiB. `available`: what programs can get without swapping."""

    total_mb: int
    available_mb: int


def host_memory() -> HostMemory | None:
    """Read how much memory this machine has; None: the system does not tell."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        said = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        return HostMemory(said["MemTotal"] // 1024, said["MemAvailable"] // 1024)
    except (OSError, ValueError, KeyError, IndexError):
        return None


class Unified:
    """Filler of the memory that drivers do not tell of integrated GPUs.

    Args:
        total_mb: MiB of the machine's memory that its integrated GPUs may use in all; None: all of
            it; 0: none is known.
    """

    def __init__(self, total_mb: int | None = None) -> None:
        self._total_mb = total_mb
        self._own: set[str] = set()
        self._most = 1

    def fill(self, answers: Mapping[int, Answer], *, by_name: bool = False) -> dict[int, Answer]:
        """Return the answers, with the memory of integrated GPUs.

        Several of them share it evenly: each is told an equal part. A GPU that has once told of
        memory of its own is none of them; `by_name`: nor is one with the name of such GPUs, unless
        the operator has said how much integrated ones may use.
        """
        gpus = {i: a[0] for i, a in answers.items() if not isinstance(a, Fault)}
        strict = by_name and self._total_mb is None
        perhaps = {i: gpu for i, gpu in gpus.items() if _perhaps(gpu, strict=strict)}
        host = host_memory() if perhaps else None
        shared = {i for i, g in perhaps.items() if g.uuid not in self._own and _is_unified(g, host)}
        self._own |= {g.uuid for i, g in gpus.items() if g.total_mb and i not in shared}
        self._most = max(self._most, len(shared))
        filled = {i: self._of_its_own(gpu) for i, gpu in gpus.items() if i not in shared}
        if host is not None and self._total_mb != 0:
            filled |= {i: self._filled(gpus[i], host) for i in shared}
        return {
            i: a if isinstance(a, Fault) else (filled.get(i, a[0]), *a[1:])
            for i, a in answers.items()
        }

    def _of_its_own(self, gpu: DeviceSample) -> DeviceSample:
        """Return a GPU with memory of its own; one that no longer tells of it is not well."""
        own = replace(gpu, unified=False)
        if gpu.state == "ok" and gpu.total_mb is None and gpu.uuid in self._own:
            return quiet(own, Fault("error", SILENT))
        return own

    def _filled(self, gpu: DeviceSample, host: HostMemory) -> DeviceSample:
        all_mb = host.total_mb if self._total_mb is None else self._total_mb
        total_mb = all_mb // self._most
        used_mb = (all_mb - min(all_mb, host.available_mb)) // self._most
        return replace(
            gpu,
            total_mb=total_mb,
            system_mb=system_mb_of(total_mb),
            used_mb=used_mb,
            memory_utilization_pct=percent(used_mb, total_mb),
            reason="",
            unified=True,
        )


def _perhaps(gpu: DeviceSample, *, strict: bool) -> bool:
    if gpu.state != "ok":
        return False
    integrated = bool(INTEGRATED.search(gpu.name))
    own = strict and bool(OWN_MEMORY.search(gpu.name))
    return integrated or (gpu.unified and not own)


def _is_unified(gpu: DeviceSample, host: HostMemory | None) -> bool:
    """Return whether a GPU uses the machine's memory.

    Its driver says that it has none of its own, or tells the machine's as that of a GPU that has
    none.
    """
    machines = host is not None and (gpu.total_mb or 0) >= ALL_OF_IT * host.total_mb
    return gpu.unified or machines
