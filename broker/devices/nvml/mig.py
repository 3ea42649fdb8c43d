"""MIG devices of a divided GPU: each is leased by itself, and so has a row of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import PART
from broker.devices.last_known import quiet
from broker.devices.nvml.handle import Handle, identified
from broker.devices.nvml.processes import read_processes
from broker.devices.sample import (
    DeviceSample,
    name_of,
    number,
    uuid_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DIVIDED = "This GPU is divided: its MIG devices are leased in its place"
EMPTY = (
    "This GPU is divided, and its driver names no MIG device: nvidia-smi mig -cgi PROFILE -C makes "
    "some, nvidia-smi -mig 0 makes it whole"
)
SHARED: Final = (
    "It shares its memory with {}, which is leased in its place: both are compute instances of one "
    "GPU instance"
)
_COMPUTE_INSTANCE: Final = re.compile(r"\b(\d+)c\.(\S+)")
_MOST = 64


def is_divided(gpu: Handle) -> bool:
    """Return whether MIG is on; a GPU without MIG is whole."""
    mode = gpu.ask("nvmlDeviceGetMigMode")
    return isinstance(mode, list) and mode[:1] == [1]


def part_name(name: str) -> str:
    """Return the name of a part: never one that a whole GPU has."""
    return name if PART.rstrip() in name else name_of(f"{name}{PART}")


def divided(parent: DeviceSample, of_mig: Sequence[DeviceSample]) -> DeviceSample:
    """Return the row of a divided GPU: the rows of its parts tell their processes."""
    reason = DIVIDED if of_mig else EMPTY
    return replace(parent, state="mig", reason=reason, unified=False, processes=None, mps=None)


def apart(rows: Iterable[DeviceSample], instances: Mapping[str, float]) -> list[DeviceSample]:
    """Return the parts of a GPU; of those that share one memory the largest alone is to be leased.

    Compute instances of one GPU instance, such as 1c.3g.40gb and 2c.3g.40gb, are each told all of
    its memory.

    Args:
        rows: the parts.
        instances: the GPU instance of each, where its driver tells it; else its name does.
    """
    found = list(rows)
    sharing: dict[float | str, list[DeviceSample]] = {}
    for row in found:
        named = _COMPUTE_INSTANCE.search(row.name)
        of = instances.get(row.uuid, named[2] if named else row.uuid)
        sharing.setdefault(of, []).append(row)
    leased = {id(row): max(each, key=_rank) for each in sharing.values() for row in each}
    return [
        replace(row, state="mig", reason=SHARED.format(most.uuid), processes=None, mps=None)
        if row.state == "ok" and (most := leased[id(row)]) is not row
        else row
        for row in found
    ]


def _rank(part: DeviceSample) -> tuple[bool, int, int]:
    named = _COMPUTE_INSTANCE.search(part.name)
    return part.state == "ok", int(named[1]) if named else 0, -part.index


def parts(gpu: Handle, parent: DeviceSample) -> list[DeviceSample]:
    """Return a row for each MIG device of a GPU; some may be missing if `gpu` has a complaint.

    Its index is 100 * (the GPU's index + 1) + its place among the GPU's MIG devices: the one at
    place 0 of GPU 2 is 300. No machine has the hundred GPUs that would make two of them equal.
    """
    most = number(gpu.ask("nvmlDeviceGetMaxMigDeviceCount"), 0, _MOST)
    rows: list[DeviceSample] = []
    instances: dict[str, float] = {}
    for place in range(int(most or 0)):
        raw = gpu.ask("nvmlDeviceGetMigDeviceHandleByIndex", place)
        if raw is not None:
            part = Handle(gpu.nvml, raw)
            uuid = uuid_of(part.ask("nvmlDeviceGetUUID"))
            of = number(part.ask("nvmlDeviceGetGpuInstanceId"), 0, 1e3)
            if part.complaint is not None:
                gpu.complaint = part.complaint
            if uuid and of is not None:
                instances[uuid] = of
            if uuid:
                rows.append(_row(part, uuid, 100 * (parent.index + 1) + place, parent))
    return apart(rows, instances)


def _row(part: Handle, uuid: str, index: int, parent: DeviceSample) -> DeviceSample:
    memory = part.memory()
    unreadable = part.complaint
    name = name_of(part.ask("nvmlDeviceGetName") or parent.name)
    listed = read_processes(part)
    row = replace(
        identified(index, uuid, part_name(name), memory, kind="MIG device"),
        nvml_error=part.complaint.reason if part.complaint else None,
        mps=listed.mps,
        parent=parent.uuid,
        compute_mode=parent.compute_mode,
        processes=listed.processes,
        unseen=listed.unseen,
    )
    fault = part.complaint if part.gone else unreadable
    return row if fault is None else quiet(row, fault)
