"""Telemetry of a device: one declaration of each measurement, for all that reads or shows it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Measurement(NamedTuple):
    """One value that a host may tell of a device.

    Attributes:
        kind: `number`, `count` (a whole number) or `flag` (0 or 1).
        most: the largest that makes sense; the least is 0.
        shown: its place in a row of `/gpu/info`: `always`, with `health`, or where `nvml` told it.
        http_name: its name in `/gpu/info`; empty: the same.
    """

    kind: Literal["number", "count", "flag"]
    most: int
    shown: Literal["always", "health", "nvml"]
    http_name: str = ""


MAX_MB: Final = 16_777_216
"""16 TiB: more is a driver's way to say that it does not know."""

MEASUREMENTS: Final[dict[str, Measurement]] = {
    "utilization_gpu_pct": Measurement("number", 100, "always"),
    "memory_utilization_pct": Measurement("number", 100, "always"),
    "temperature_c": Measurement("number", 200, "always"),
    "power_draw_w": Measurement("number", 10_000, "always"),
    "power_limit_w": Measurement("number", 10_000, "health"),
    "pcie_tx_kb_s": Measurement("number", 10**9, "nvml", "nvml_pcie_tx_kb_s"),
    "pcie_rx_kb_s": Measurement("number", 10**9, "nvml", "nvml_pcie_rx_kb_s"),
    "nvml_mem_used_mb": Measurement("number", MAX_MB, "nvml"),
    "nvml_mem_total_mb": Measurement("number", MAX_MB, "nvml"),
    "nvml_gpu_util_pct": Measurement("number", 100, "nvml"),
    "nvml_mem_util_pct": Measurement("number", 100, "nvml"),
    "clock_sm_mhz": Measurement("number", 10**5, "health"),
    "clock_memory_mhz": Measurement("number", 10**5, "health"),
    "ecc_uncorrected": Measurement("count", 10**12, "health"),
    "recovery_action": Measurement("count", 99, "health"),
    "rows_pending": Measurement("flag", 1, "health"),
    "rows_failed": Measurement("flag", 1, "health"),
    "mps": Measurement("flag", 1, "health"),
}
"""Every measurement, by its name in the store."""


def shown(place: str) -> tuple[str, ...]:
    """Return the names of those that have this place in a row."""
    return tuple(name for name, of in MEASUREMENTS.items() if of.shown == place)


def of_kind(kind: str) -> dict[str, tuple[int, int]]:
    """Return those of a kind, each with its least and its most."""
    return {name: (0, of.most) for name, of in MEASUREMENTS.items() if of.kind == kind}
