"""Energy of a device between two looks, and its division among the device's leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices import DeviceSample

MOST_W: Final = 10_000
"""Most power that a device can draw: a counter that grew by more was set anew."""

LEAST_MS: Final = 1_000
"""Time that counters may be read later than a look began, without being wrong."""


def drawn_mj(before: DeviceSample | None, device: DeviceSample, passed_ms: int) -> float | None:
    """Return the mJ that a device has drawn since the look before; None: unknown.

    By the driver's counter of energy, else by its power at both looks. A part of a divided GPU has
    neither.
    """
    if before is None or device.parent:
        return None
    if device.energy_mj is not None and before.energy_mj is not None:
        counted_mj = device.energy_mj - before.energy_mj
        if 0 <= counted_mj <= MOST_W * (passed_ms + LEAST_MS):
            return float(counted_mj)
    if device.power_draw_w is None or before.power_draw_w is None:
        return None
    return (device.power_draw_w + before.power_draw_w) / 2 * passed_ms  # W x ms = mJ


def divided(
    energy_mj: float | None, busy: Mapping[str, float | None], held_mb: Mapping[str, int]
) -> dict[str, float]:
    """Return each lease's part of a device's energy: by its work, else by the memory that it holds.

    Memory decides where no lease worked, or where the work of one is unknown.
    """
    if energy_mj is None:
        return {}
    weights = {token: share or 0.0 for token, share in busy.items()}
    if None in busy.values() or not any(weights.values()):
        weights = {token: float(max(1, held_mb[token])) for token in busy}
    total = sum(weights.values())
    return {token: energy_mj * weight / total for token, weight in weights.items()}
