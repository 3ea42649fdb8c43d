"""Readings of one card: the driver's books, which answer always, and its sensors, which may not.

A sensor of a sleeping card is not read: up to Linux 6.12 that woke it. Of a card that resets a
sensor answers with an error, of one that died perhaps never.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker.devices.amd.files import GONE, Unread, read, told, whole
from broker.devices.sample import number

if TYPE_CHECKING:
    from pathlib import Path

MOST_PCT: Final = 100
MOST_MILLI_C: Final = 150_000
MOST_MICRO_W: Final = 5e9
"""Most that a sensor can tell; a broken one tells more: 65535, 511 degrees."""

BROKEN: Final = 2
"""Sensors that are broken at once when the card is."""

Reading = float | Unread | None
"""Number; error; None: there is no such file."""

NO_NUMBER: Final = Unread(0)
"""Reading of a file that tells no number, or one that cannot be."""


@dataclass(frozen=True, slots=True)
class Books:
    """Driver's own book-keeping of a card, in bytes.

    Attributes:
        unique_id: the board's id; empty: it has none, or cannot tell now.
        asleep: it is suspended.
        gone: it is off the bus.
        integrated: it has no memory of its own to speak of, but the machine's.
    """

    vram_total: int | None
    vram_used: int | None
    gtt_total: int | None
    gtt_used: int | None
    unique_id: str
    asleep: bool
    gone: bool
    integrated: bool


def read_books(folder: Path) -> Books:
    """Read a card's books; none of these files needs the card awake."""
    asleep = told(folder / "power/runtime_status") in {"suspended", "suspending"}
    total = read(folder / "mem_info_vram_total")
    lost = isinstance(total, Unread) and total.error in GONE
    unique = "" if asleep else told(folder / "unique_id").lower()
    return Books(
        vram_total=whole(folder / "mem_info_vram_total"),
        vram_used=whole(folder / "mem_info_vram_used"),
        gtt_total=whole(folder / "mem_info_gtt_total"),
        gtt_used=whole(folder / "mem_info_gtt_used"),
        unique_id=unique if re.fullmatch(r"[0-9a-f]{1,16}", unique) and int(unique, 16) else "",
        asleep=asleep,
        gone=lost or told(folder / "vendor") == "0xffff" or not folder.is_dir(),
        integrated=_integrated(folder),
    )


def _integrated(folder: Path) -> bool:
    """Return whether the driver leaves out what it leaves out for a processor's own graphics."""
    if (folder / "mem_busy_percent").exists() or (folder / "current_compute_partition").exists():
        return False
    monitor = _monitor(folder)
    return monitor is not None and not any(
        (monitor / name).exists() for name in ("power1_cap", "fan1_input", "temp2_input")
    )


@dataclass(slots=True)
class Sensors:
    """Sensors of a card, filled in one after the other: a read may never return.

    Attributes:
        at: the file that is being read.
    """

    at: str = ""
    busy_pct: Reading = None
    temperature_mc: Reading = None
    power_uw: Reading = None
    cap_uw: Reading = None
    uncorrected: int | None = None
    readings: list[Reading] = field(default_factory=list)

    @property
    def fault(self) -> str:
        """The reason for which the card cannot be relied on; empty: it can."""
        for reading in self.readings:
            if isinstance(reading, Unread) and reading.error in {errno.EPERM, errno.EACCES}:
                return "the driver refuses its sensors: it resets, or the system is suspended"
        if sum(isinstance(reading, Unread) for reading in self.readings) >= BROKEN:
            return "its sensors tell nothing that can be: its firmware may be broken"
        return ""

    def take(self, folder: Path) -> None:
        """Read them, one after the other."""
        self.busy_pct = self._read(folder / "gpu_busy_percent", MOST_PCT)
        if (monitor := _monitor(folder)) is not None:
            self.temperature_mc = self._first(monitor, ("temp2_input", "temp1_input"), MOST_MILLI_C)
            self.power_uw = self._first(monitor, ("power1_average", "power1_input"), MOST_MICRO_W)
            self.at = "power1_cap"
            self.cap_uw = _reading(monitor / "power1_cap", MOST_MICRO_W)
        self.at = "ras/umc_err_count"
        errors = re.search(r"^ue: (\d+)$", told(folder / "ras/umc_err_count"), re.MULTILINE)
        self.uncorrected = int(errors[1]) if errors else None
        self.at = ""

    def _first(self, folder: Path, names: tuple[str, ...], most: float) -> Reading:
        name = next((each for each in names if (folder / each).exists()), names[-1])
        return self._read(folder / name, most)

    def _read(self, path: Path, most: float) -> Reading:
        self.at = path.name
        reading = _reading(path, most)
        self.readings.append(reading)
        return reading


def value(reading: Reading, unit: float = 1.0) -> float | None:
    """Return what a sensor tells, in another unit; None: nothing."""
    return None if reading is None or isinstance(reading, Unread) else reading / unit


def _reading(path: Path, most: float) -> Reading:
    text = read(path)
    if isinstance(text, Unread):
        return None if text.error == errno.ENOENT else text
    found = number(text, 0, most)
    return NO_NUMBER if found is None else found


def _monitor(folder: Path) -> Path | None:
    """Return the card's folder of sensors; its number varies."""
    try:
        found = sorted((folder / "hwmon").iterdir())
    except OSError:
        return None
    return next((each for each in found if told(each / "name") == "amdgpu"), None)
