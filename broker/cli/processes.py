"""Processes in the picture of `gpu-broker status`: their users, and blind spots."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from agent_sdk.state.finding_kinds import KINDS
from agent_sdk.state.findings import held_by, unleased
from broker.text.screen import one_line, paint
from broker.text.table import age, cut, gib, some

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus, ProcessStatus
    from agent_sdk.state.pool_state import PoolState
    from agent_sdk.state.snapshot import LeaseStatus

FOUND: Final = {word: "red" if kind.grave else "yellow" for word, kind in KINDS.items()}
"""Colours of the words of findings."""

USER: Final = 10
"""Most letters of a user's name: its column never gives way."""

DRAWS: Final = "graphics"
"""Word for a process that computes nothing."""

Row = tuple[str, ...]


def beneath(device: DeviceStatus, lease: LeaseStatus, scene: PoolState, *, wide: bool) -> list[Row]:
    """Return the rows of a lease's processes on a device."""
    return [_row("  ·", p, "", scene, wide=wide) for p in held_by(device, lease.token)]


def unleased_rows(device: DeviceStatus, scene: PoolState, *, wide: bool) -> list[Row]:
    """Return the rows of the processes without a living lease, with what is found of them."""
    return [
        _row(
            "!" if process.finding else "·",
            process,
            paint(process.finding, FOUND.get(process.finding)) or DRAWS * process.graphics_only,
            scene,
            wide=wide,
        )
        for process in unleased(device, scene.leases)
    ]


def _row(mark: str, process: ProcessStatus, word: str, scene: PoolState, *, wide: bool) -> Row:
    """Return a process in the columns of status: name, pid, memory, user, use, finding."""
    busy = process.busy_pct
    row = (
        "", f"{mark} {process.name or '?'}", f"pid {process.pid}",
        "-" if process.memory_mb is None else gib(process.memory_mb), cut(process.user, USER),
        "" if busy is None else f"{busy:.0f} %", "", word,
    )  # fmt: skip
    if not wide:
        return row
    seen = f"seen for {age(scene.pool.now_ms - process.since_ms)}"
    return (*row, f"{seen} lease {process.token}" if process.token else seen)


def notes(scene: PoolState, width: int | None) -> list[str]:
    """Return notes on GPUs in quarantine or on terms, and on hosts with invisible processes."""
    lines = [
        f"{d.host}:{d.index} is in quarantine: {d.quarantine}"
        for d in scene.devices.values()
        if d.quarantine
    ]
    lines += _drains(scene)
    alone: dict[str, list[str]] = {}
    for device in scene.devices.values():
        if device.one_lease:
            alone.setdefault(device.one_lease, []).append(f"{device.host}:{device.index}")
    lines += [f"one lease at a time on {some(places)}: {why}" for why, places in alone.items()]
    unseen: dict[str, dict[str, None]] = {}
    for device in scene.devices.values():
        if device.unseen:
            unseen.setdefault(device.unseen, {})[device.host] = None
    lines += [f"processes unseen on {', '.join(hosts)}: {why}" for why, hosts in unseen.items()]
    lines = [one_line(line) for line in lines]
    if width is not None:
        lines = [textwrap.fill(line, width, subsequent_indent="  ") for line in lines]
    return ["\n".join(lines)] if lines else []


def _drains(scene: PoolState) -> list[str]:
    """Say of the drained GPUs which operator drained them, and why, once for those alike."""
    drains: dict[tuple[str, str], list[str]] = {}
    for device in scene.devices.values():
        if device.drained and device.drain_by:
            place = f"{device.host}:{device.index}"
            drains.setdefault((device.drain_by, device.drain_reason), []).append(place)
    return [
        f"{some(places)} drained by {by}{why and f': {why}'}"
        for (by, why), places in drains.items()
    ]
