"""Words for the states of devices and leases, as the commands show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.state import reservations

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import LeaseStatus


def state_of(device: DeviceStatus, now_ms: int) -> str:
    """Say a device's state in a word, with what is wrong, or with its reservation."""
    if device.state == "ok" and device.reservation and not device.drained:
        return reservations.says(device.reservation, now_ms)
    word = "drained" if device.drained and device.state == "ok" else device.state
    return f"{word} {device.quarantine or device.reason}".strip()


def preempting(lease: LeaseStatus, now_ms: int) -> str:
    """Say when a lease ends for a request of others; empty: it need not."""
    if lease.preempt_at_ms is None:
        return ""
    left_s = max(0, lease.preempt_at_ms - now_ms) // 1000
    return f"preempting in {left_s} s for {lease.preempt_by} of team {lease.preempt_team}"
