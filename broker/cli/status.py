"""`gpu-broker status`: devices and leases, straight from the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from broker.cli.store import output_option, pool_client, show
from broker.cli.table import age, gib, table

if TYPE_CHECKING:
    from agent_sdk.snapshot import DeviceStatus, LeaseStatus, PoolStatus


@click.command()
@output_option
def status(output: str) -> None:
    """Show devices and who holds what. No running broker is needed.

    \b
    Examples:
      gpu-broker status
      gpu-broker status -o json | jq '.devices[].free_mb'
    """
    with pool_client() as client:
        pool, devices, leases = client.pool(), client.devices(), client.leases()
    data = {
        "pool": asdict(pool),
        "devices": [asdict(device) | {"free_mb": device.free_mb} for device in devices],
        "leases": [asdict(lease) | {"memory_mb": lease.memory_mb} for lease in leases],
    }
    show(output, as_text(pool, devices, leases), data)


def as_text(
    pool: PoolStatus, devices: tuple[DeviceStatus, ...], leases: tuple[LeaseStatus, ...]
) -> str:
    """One line per device, the leases on it below it, and CPU leases last."""
    if not pool.ready:
        return "no host has reported to this pool: start gpu-broker serve on a machine with GPUs"
    parts = [f"SAFE_MODE is {'ON: no GPU leases are given' if pool.safe_mode else 'off'}"]
    if pool.waiting:
        parts.append(f"{pool.waiting} waiting: gpu-broker queue")
    if not devices:
        parts.append("no devices: GPU_BROKER_DEVICES says where to look for them")
    rows: list[tuple[str, ...]] = []
    for device in devices:
        rows.append(_device_row(device))
        rows += [_lease_row(x, pool, mb) for x in leases for u, mb in x.devices if u == device.uuid]
    if rows:
        parts.append(table(("HOST:GPU", "NAME", "STATE", "FREE", "LEASED", "TOTAL", "UTIL"), rows))
    if cpu := [_lease_row(x, pool, 0) for x in leases if not x.devices]:
        parts.append(table(("CPU LEASES", "", "", "", "", "", ""), cpu))
    return "\n\n".join(parts)


def state_of(device: DeviceStatus) -> str:
    """A device's state in a word, and what is wrong with it."""
    word = "drained" if device.drained and device.state == "ok" else device.state
    return f"{word} {device.reason}".strip()


def _device_row(device: DeviceStatus) -> tuple[str, ...]:
    busy = device.telemetry["utilization_gpu_pct"]
    return (
        f"{device.host}:{device.index}",
        device.name,
        state_of(device),
        gib(max(0, device.free_mb)),
        gib(device.reserved_mb),
        gib(device.total_mb),
        "-" if busy is None else f"{busy:.0f} %",
    )


def _lease_row(lease: LeaseStatus, pool: PoolStatus, mb: int) -> tuple[str, ...]:
    ends = lease.expires_at_ms
    left = "no expiry" if ends is None else f"{age(ends - pool.now_ms)} left"
    return ("", f"└ {lease.agent}", left, "", gib(mb) if mb else "cpu", "", lease.token[:8])
