"""Processes on AMD's GPUs, by KFD's files and by the descriptors of the display driver.

Both count the same memory, so the larger one is a process's. KFD has a file for each GPU that a
process opened, mostly of 0 bytes: that is no use of it. All partitions of a card share one PCI
address, so descriptors tell nothing of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker.devices.amd.files import numbered, told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KFD: Final = "sys/class/kfd/kfd/proc"

UNITS: Final = {"": 1, "B": 1, "kB": 1 << 10, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
"""Units of sizes in fdinfo; a number alone is in bytes."""

MEMORY: Final = {
    "vram": ("drm-resident-vram", "drm-memory-vram", "vram mem"),
    "gtt": ("drm-resident-gtt", "drm-memory-gtt", "gtt mem"),
}
"""Lines of fdinfo that tell of memory, of newer kernels first."""


@dataclass(slots=True)
class Holdings:
    """Bytes that each process holds.

    Attributes:
        by_node: KFD's number of a GPU -> pid -> bytes.
        by_card: PCI address -> pid -> (bytes of the card's memory, of the machine's).
        kfd: KFD tells of processes on this machine.
        descriptors: the display driver does.
        elsewhere: KFD's pids are of another namespace than `/proc`, which has the same processes
            under other numbers.
    """

    by_node: dict[int, dict[int, int]] = field(default_factory=dict)
    by_card: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    kfd: bool = False
    descriptors: bool = False
    elsewhere: bool = False


def holdings(root: Path) -> Holdings:
    """Return what the processes of this machine hold on its GPUs."""
    found = Holdings(kfd=(root / KFD).is_dir())
    for folder in numbered(root / KFD):
        for path in (*folder.glob("vram_*"), *folder.glob("context_*/vram_*")):
            size, node = told(path), path.name.removeprefix("vram_")
            if size.isdecimal() and node.isdecimal():
                on_node = found.by_node.setdefault(int(node), {})
                pid = int(folder.name)
                on_node[pid] = on_node.get(pid, 0) + int(size)
            found.elsewhere |= not (root / "proc" / folder.name).exists()
    if found.elsewhere:
        return found
    seen: set[tuple[str, str]] = set()
    for folder in numbered(root / "proc"):
        for said in _descriptors(folder):
            found.descriptors = True
            pdev, client = (
                said.get("drm-pdev") or said.get("pdev", ""),
                said.get("drm-client-id", folder.name),
            )
            if (pdev, client) in seen or _passes_on(folder):
                continue
            seen.add((pdev, client))
            on_card = found.by_card.setdefault(pdev, {})
            vram, gtt = on_card.get(int(folder.name), (0, 0))
            on_card[int(folder.name)] = (vram + _size(said, "vram"), gtt + _size(said, "gtt"))
    return found


def _passes_on(folder: Path) -> bool:
    """Return whether a process holds descriptors for others: the system's session managers do."""
    return told(folder / "comm").startswith("systemd")


def _descriptors(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of each descriptor of amdgpu that a process has."""
    for path in _of_gpus(folder):
        text = told(path)
        if "amdgpu" in text or "vram mem:" in text:
            said = dict(re.findall(r"^([\w -]+?):\s*(.*?)\s*$", text, re.MULTILINE))
            if "drm-pdev" in said or "pdev" in said:
                yield said


def _of_gpus(folder: Path) -> list[Path]:
    """Return the fdinfo of a process's descriptors of GPUs; of all where links are not shown."""
    infos = numbered(folder / "fdinfo")
    if not infos or not (folder / "fd").is_dir():
        return infos
    return [path for path in infos if _is_gpu(folder / "fd" / path.name)]


def _is_gpu(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith(("/dev/dri/", "/dev/kfd"))
    except OSError:
        return False


def _size(said: dict[str, str], where: str) -> int:
    for name in MEMORY[where]:
        found = re.fullmatch(r"(\d+)\s*(\w*)", said.get(name, ""))
        if found and found[2] in UNITS:
            return int(found[1]) * UNITS[found[2]]
    return 0
