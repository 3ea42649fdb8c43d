"""Words that nvidia-smi prints in place of a value, and what each says of the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.devices.last_known import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.sample import State

FAULTS: Final[tuple[tuple[tuple[str, ...], State, str], ...]] = (
    (("gpu is lost",), "lost", "this GPU is lost: reset it or reboot"),
    (
        ("requires reset", "reset required", "needs reset", "requires restart", "requires reboot"),
        "lost",
        "this GPU must be reset before it can be used again",
    ),
)
"""Words of one cell, in lower case, that say it of the whole GPU."""

FAILED: Final = frozenset({"unknown error", "err!", "timeout", "interrupt request issue"})
"""Words for a value that the driver could not read, although it should."""

VITAL: Final = (
    "uuid", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu", "mig.mode.current",
)  # fmt: skip
"""Columns that a sound GPU answers, or of which it says that they are not supported."""

NOT_SUPPORTED: Final = frozenset({"n/a", "not supported"})
"""Words for a value that this GPU does not have."""

RECOVERY: Final[Mapping[str, int]] = {
    "none": 0, "reset": 1, "gpu reset": 1, "reboot": 2, "node reboot": 2, "drain p2p": 3,
    "drain and reset": 4, "recover imex domain": 5, "bus reset": 6, "system reboot": 7,
}  # fmt: skip
"""Words for the driver's recovery action, with NVML's number for each."""


def word(cell: str) -> str:
    """Return a cell in lower case without its brackets."""
    return cell.strip("[] ").lower()


def fault_of(record: Mapping[str, str]) -> Fault | None:
    """Return the fault that a GPU's row tells, the gravest first; None: it tells none."""
    other = {"name", "gpu_recovery_action"}  # a name, and words of its own
    said = {column: word(cell) for column, cell in record.items() if column not in other}
    for words, state, means in FAULTS:
        if any(each in cell for each in words for cell in said.values()):
            return Fault(state, f"nvidia-smi says that {means}")
    for column in VITAL:
        cell = said.get(column, "")
        if cell in FAILED or "error" in cell:
            return Fault("error", f"nvidia-smi cannot read {column} of this GPU: {record[column]}")
    return None


def recovery_of(record: Mapping[str, str]) -> int | None:
    """Return the driver's recovery action, by NVML's number; None: it is not told."""
    said = word(record.get("gpu_recovery_action", "")).removesuffix(" required")
    return RECOVERY.get(said)


def is_unified(record: Mapping[str, str]) -> bool:
    """Return whether a GPU has no memory of its own: it says so of all and of the used part."""
    cells = (word(record.get(f"memory.{part}", "")) for part in ("total", "used"))
    return all(cell in NOT_SUPPORTED for cell in cells)
