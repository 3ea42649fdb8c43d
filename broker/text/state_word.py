"""The word for a device's state, as the commands show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.state import reservations

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus


def state_of(device: DeviceStatus, now_ms: int) -> str:
    """Say a device's state in a word, with what is wrong, or with its reservation."""
    if device.state == "ok" and device.reservation and not device.drained:
        return reservations.says(device.reservation, now_ms)
    word = "drained" if device.drained and device.state == "ok" else device.state
    return f"{word} {device.quarantine or device.reason}".strip()
