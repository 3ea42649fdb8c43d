"""Names of AMD's GPUs for people: the board's own, libdrm's, or the PCI device's number."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.devices.amd.files import told
from broker.devices.amd.topology import MODE

if TYPE_CHECKING:
    from broker.devices.amd.topology import Gpu

LISTS: Final = (
    "usr/share/libdrm/amdgpu.ids",
    "opt/amdgpu/share/libdrm/amdgpu.ids",
)
"""Lists of libdrm: device, revision, name."""

NEWER: Final = {
    ("164E", ""): "AMD Raphael (0x164e)",
    ("1586", ""): "AMD Radeon 8060S",
    ("7448", "00"): "AMD Radeon PRO W7900",
    ("744C", "C8"): "AMD Radeon RX 7900 XTX",
    ("744C", "CC"): "AMD Radeon RX 7900 XT",
    ("740F", ""): "AMD Instinct MI210",
    ("7550", "C0"): "AMD Radeon RX 9070 XT",
}
"""GPUs that the lists of older distributions lack."""


def name(root: Path, gpu: Gpu) -> str:
    """Return a GPU's name; the kernel's compute driver calls all new ones `ip discovery`."""
    device = told(gpu.folder / "device").removeprefix("0x").upper()
    revision = told(gpu.folder / "revision").removeprefix("0x").upper()
    known = (
        told(gpu.folder / "product_name")
        or _listed(root).get((device, revision))
        or NEWER.get((device, revision))
        or NEWER.get((device, ""))
        or f"AMD 0x{device.lower() or '????'}"
    )
    if gpu.part is None:
        return known
    of = f" 1/{gpu.parts}" if gpu.parts > 1 else ""
    return f"{known} ({told(gpu.folder / MODE)}{of})"


@cache
def _listed(root: Path) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for path in (*(root / each for each in LISTS), *(Path("/") / each for each in LISTS)):
        for line in told(path).splitlines():
            words = [word.strip() for word in line.split(",", 2)]
            if len(words) == len(("device", "revision", "name")) and not line.startswith("#"):
                found.setdefault((words[0].upper(), words[1].upper()), words[2])
    return found
