"""Load of each lease on a device: how busy its processes are, and how much memory they use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from broker.attribution.idleness import busy_by_none, told_apart
from broker.attribution.mps import CONTROL
from broker.attribution.visibility import unexplained

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from broker.attribution.findings import AttributedSample
    from broker.devices import DeviceSample
    from broker.devices.sample import GpuProcess


class Load(NamedTuple):
    """Load of one lease on a device; None: it cannot be told.

    Attributes:
        busy: share of the recent time in which its processes computed, 0 to 1.
        used_mb: MiB that its processes use.
    """

    busy: float | None
    used_mb: int | None


UNKNOWN: Final = Load(None, None)

PLAINLY_PCT: Final = 10.0
"""Utilization at which some process works for long enough to be named."""


class _Work(NamedTuple):
    """Work on a device, as its driver tells it.

    Attributes:
        busy_pct: that of all processes together; None: not told.
        processes: how many may compute.
        apart: the work of each is told, and can be relied on.
        unnamed: something works there, and no process does.
    """

    busy_pct: float | None
    processes: int
    apart: bool
    unnamed: bool


def in_doubt(device: DeviceSample, before: bool) -> bool:
    """Return whether the driver's word on the work of each process is not relied on.

    It has called all processes of a busy GPU idle, and has not named one that works since. Then its
    word is no better while the GPU is idle: what is known must not depend on what it is.
    """
    if told_apart(device):
        return False
    busy = (device.utilization_gpu_pct or 0.0) >= PLAINLY_PCT
    return before or (busy and busy_by_none(device))


def loads_on(seen: AttributedSample, uuid: str, *, doubted: bool = False) -> dict[str, Load]:
    """Return the load of each lease that was active on a device when it was looked at.

    A process of several leases works for each of them; its memory is divided by what they hold.
    Of processes that are not all known nothing is told, and of a part of a divided GPU not how busy
    it is: what such a device tells is of the whole one.

    Args:
        seen: the look.
        uuid: the device.
        doubted: see `in_doubt`.
    """
    device, shares = seen.devices[uuid], seen.shares[uuid]
    tokens = {token: None for token in shares.active if token not in shares.young}.keys()
    if device.simulated and device.processes is None:  # nothing else can compute on it
        return dict.fromkeys(tokens, Load(_share(device.utilization_gpu_pct), None))
    if device.processes is None or device.unseen or unexplained(device):
        return dict.fromkeys(tokens, UNKNOWN)
    held = shares.all
    of: dict[str, list[GpuProcess]] = {token: [] for token in tokens}
    used_mb: dict[str, int | None] = dict.fromkeys(tokens, 0)
    strangers: list[GpuProcess] = []
    of_mps = 0
    for process in device.processes:
        owners = seen.owners.get(process.pid, frozenset())
        of_mps += (serves := _serves_all(seen, process))
        if not owners and not serves:
            strangers.append(process)
        for token in owners & tokens:
            of[token].append(process)
            used_mb[token] = _sum(used_mb[token], _part_mb(process, token, owners, held))
    unnamed = busy_by_none(device)
    apart = not (device.mps or of_mps or doubted or unnamed)
    work = _Work(device.utilization_gpu_pct, len(device.processes) - of_mps, apart, unnamed)
    unsure: frozenset[str] = frozenset()
    if any(not process.graphics_only for process in strangers):  # they may be such a lease's
        unsure = shares.unattributed | shares.unseen
    return {
        token: Load(
            None if device.parent or token in unsure else _busy(work, of[token]),
            None if token in unsure else used_mb[token],
        )
        for token in tokens
    }


def _busy(work: _Work, mine: list[GpuProcess]) -> float | None:
    """Return how busy a lease's processes are.

    Where the driver does not tell processes apart, the device's utilization is theirs if no others
    are there.
    """
    if not mine:
        return None if work.unnamed else 0.0
    told = [process.busy_pct for process in mine]
    if work.apart and None not in told:
        return _share(sum(pct or 0.0 for pct in told))
    return _share(work.busy_pct) if len(mine) == work.processes else None


def _share(pct: float | None) -> float | None:
    return None if pct is None else min(100.0, pct) / 100


def _serves_all(seen: AttributedSample, process: GpuProcess) -> bool:
    """Tell whether a process is of MPS, which computes for its clients."""
    program = seen.programs.get(process.pid)
    return program is not None and program.name.startswith(CONTROL)


def _part_mb(
    process: GpuProcess, token: str, owners: AbstractSet[str], held: Mapping[str, int]
) -> int | None:
    """Return a lease's part of a process's memory, rounded up."""
    if process.memory_mb is None or len(owners) == 1:
        return process.memory_mb
    held_mb = sum(held[owner] for owner in owners if owner in held)
    return -(-process.memory_mb * held[token] // max(1, held_mb))


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
