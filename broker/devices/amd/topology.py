"""GPUs of this machine: KFD's nodes, in the order in which ROCm counts them, and cards beside.

A node that the kernel refuses belongs to others (a container sees its own GPUs alone), and ROCm
does not count it. A card without a node is known to the display driver only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from broker.devices.amd.files import Unread, numbered, properties, read, told

if TYPE_CHECKING:
    from pathlib import Path

NODES: Final = "sys/class/kfd/kfd/topology/nodes"

MODE: Final = "current_compute_partition"
"""File of a card's mode; SPX: it is one GPU."""

DRIVER: Final = ("sys/module/amdgpu", "sys/bus/pci/drivers/amdgpu", "sys/class/kfd")
"""Folders of the driver amdgpu."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """GPU, or a partition of one.

    Attributes:
        pdev: its PCI address, function 0.
        folder: its PCI device.
        ordinal: its number for ROCm; None: ROCm does not know it.
        gpu_id: KFD's number of it; 0: none.
        kfd_id: KFD's unique id; 0: none.
        shared_id: another node has the same unique id.
        bank: bytes of its memory as KFD tells; 0: unknown.
        simds: its number of SIMD units; 0: unknown.
        part: its number among the partitions of a card; None: it is the whole card.
        parts: the number of partitions.
        named: its kernel names the processes on it.
    """

    pdev: str
    folder: Path
    ordinal: int | None = None
    gpu_id: int = 0
    kfd_id: int = 0
    shared_id: bool = False
    bank: int = 0
    simds: int = 0
    part: int | None = None
    parts: int = 1
    named: bool = False

    @property
    def token(self) -> str:
        """Word for ROCR_VISIBLE_DEVICES: an id that two nodes share selects none."""
        if self.ordinal is None:
            return ""
        usable = self.kfd_id and not self.shared_id
        return f"GPU-{self.kfd_id:016x}" if usable else str(self.ordinal)


def gpus(root: Path) -> list[Gpu]:
    """Return the GPUs that a process here may use, then cards that only the display driver has."""
    nodes = [gpu for path in numbered(root / NODES) if (gpu := _node(root, path)) is not None]
    cards, ids = Counter(gpu.pdev for gpu in nodes), Counter(gpu.kfd_id for gpu in nodes)
    found: list[Gpu] = []
    for ordinal, gpu in enumerate(nodes):
        parts = cards[gpu.pdev]
        # A container may see one partition of a card
        divided = parts > 1 or told(gpu.folder / MODE) not in {"", "SPX"}
        found.append(
            replace(
                gpu,
                ordinal=ordinal,
                shared_id=ids[gpu.kfd_id] > 1,
                part=gpu.part if divided else None,
                parts=parts,
            )
        )
    return found + [card for card in _cards(root) if card.pdev not in cards]


def _node(root: Path, path: Path) -> Gpu | None:
    """Return the GPU of a node; None: it is a processor, or may not be used here."""
    text = read(path / "properties")
    if isinstance(text, Unread):
        return None
    said = properties(text)
    minor = said.get("drm_render_minor", 0)
    if not said.get("simd_count") or not (root / f"dev/dri/renderD{minor}").exists():
        return None
    at = said.get("location_id", 0)
    pdev = f"{said.get('domain', 0):04x}:{at >> 8 & 0xFF:02x}:{at >> 3 & 31:02x}.0"
    bank = properties(told(path / "mem_banks/0/properties"))
    gpu_id = told(path / "gpu_id")
    return Gpu(
        pdev,
        _pci(root, pdev),
        gpu_id=int(gpu_id) if gpu_id.isdecimal() else 0,
        kfd_id=said.get("unique_id", 0),
        bank=bank.get("size_in_bytes", 0),
        simds=said["simd_count"],
        part=at & 7,
        named="unique_id" in said,
    )


def _cards(root: Path) -> list[Gpu]:
    """Return the cards of the driver amdgpu that have a render node here."""
    found: dict[str, Gpu] = {}
    for link in sorted((root / "sys/class/drm").glob("renderD*")):
        folder = (link / "device").resolve()
        if not (root / "dev/dri" / link.name).exists():
            continue
        if (folder / "driver").is_symlink() and (folder / "driver").readlink().name == "amdgpu":
            found[folder.name] = Gpu(folder.name, folder)
    return [found[pdev] for pdev in sorted(found)]


def _pci(root: Path, pdev: str) -> Path:
    return (root / "sys/bus/pci/devices" / pdev).resolve()


def present(root: Path) -> bool:
    """Return whether this machine has AMD's driver."""
    return any((root / folder).exists() for folder in DRIVER)


def nvidia_too(root: Path) -> bool:
    """Return whether a GPU of NVIDIA is on the bus, whatever its driver says."""
    return any(
        told(vendor) == "0x10de" and told(vendor.parent / "class").startswith("0x03")
        for vendor in (root / "sys/bus/pci/devices").glob("*/vendor")
    )
