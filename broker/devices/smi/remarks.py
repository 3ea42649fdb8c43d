"""Lines of nvidia-smi that are no rows: a GPU that cannot be opened, a warning, a failure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from broker.devices.last_known import Fault
from broker.devices.nvml.handle import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUS: Final = r"([0-9a-f]{1,8}):([0-9a-f]{1,2}):([0-9a-f]{1,2}\.[0-9a-f])"

_HANDLE = re.compile(
    rf"unable to \w+ the device handle for (?:gpu)?\s*(?:\d+:\s+)?{BUS}\s*:?\s*(.*)", re.IGNORECASE
)
"""Words of the real program about one GPU; they differ a little from version to version."""

_WARNING = re.compile(r"\W*warning\b", re.IGNORECASE)

_FAILURES: Final = (
    (18, "driver/library version mismatch"),
    (9, "couldn't communicate with the nvidia driver"),
    (9, "driver not loaded"),
    (12, "couldn't find libnvidia-ml"),
    (4, "insufficient permissions"),
)
"""NVML's code of a failure, by words that the program prints for it."""

UNKNOWN: Final = (
    "The NVIDIA driver reports an unknown error; a container that has lost its devices, as after "
    "systemd has reloaded its units, must be started anew"
)


def bus_of(cell: str) -> str:
    """Return a PCI bus id in one form: nvidia-smi writes it with four or eight digits in front."""
    found = re.fullmatch(BUS, cell.strip().lower())
    return f"{int(found[1], 16):x}:{found[2]:0>2}:{found[3]:0>4}" if found else ""


def fallen(lines: Iterable[str]) -> dict[str, Fault]:
    """Return the faults of GPUs that cannot be opened, by bus id."""
    found: dict[str, Fault] = {}
    for line in lines:
        if said := _HANDLE.search(line):
            word = said[4].split(".")[0].strip() or "it cannot be opened"
            lost = "lost" in word.lower() or "fallen off" in word.lower()
            what = "reset it or reboot" if lost else "see the kernel's log, reset it or reboot"
            reason = f"nvidia-smi cannot open GPU {':'.join(said.groups()[:3])}: {word}; {what}"
            found[bus_of(":".join(said.groups()[:3]))] = Fault("lost" if lost else "error", reason)
    return found


def are_warnings(lines: Iterable[str]) -> bool:
    """Tell whether each line is a warning by its own word."""
    return all(_WARNING.match(line) for line in lines)


def failure(status: int, lines: Sequence[str]) -> str:
    """Return why the program failed: plain words with the way out, then its own."""
    remark = next(iter(lines), f"exit status {status}, no output")
    said = " ".join(lines).lower()
    code = next((code for code, words in _FAILURES if words in said), None)
    if code is not None:
        return f"{SENTENCES[code]} (nvidia-smi: {remark})"
    if "failed to initialize nvml: unknown error" in said:
        return f"{UNKNOWN} (nvidia-smi: {remark})"
    return f"nvidia-smi failed: {remark}"
