"""MIG devices through nvidia-smi: its list names them, its log in XML tells their memory.

Neither of both tells all: the list has each one's UUID and profile, the log its memory by its
place on the GPU. Without the log the profile's own size counts, less what the driver may keep.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.parsers import expat

from agent_sdk.keys import PART, model_of
from agent_sdk.state.telemetry import MAX_MB
from broker.devices.nvml.mig import apart
from broker.devices.sample import (
    DeviceSample,
    name_of,
    number,
    percent,
    system_mb_of,
    text,
    uuid_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.smi.processes import Apps

UNTOLD: Final = (
    "This GPU is divided, and nvidia-smi does not list its MIG devices: ENABLE_NVML=true"
)

ON_PARENT: Final = (
    "nvidia-smi names processes on the GPU, and not on which of its MIG devices they are"
)

_GPU = re.compile(r"GPU (\d{1,4}): .*\(UUID: ([^()]+)\)")
_PART = re.compile(r"\s+MIG (\S+(?: \S+)*?)\s+Device\s+(\d{1,3}):\s+\(UUID: ([^()]+)\)")
_SIZE = re.compile(r"\.(\d{1,4})gb")

_SURE: Final = 0.88
"""Share of the memory in a profile's name that its MIG devices have at the least."""


@dataclass(frozen=True, slots=True)
class MigPart:
    """MIG device as the list names it: `place` is its place among those of its GPU."""

    uuid: str
    profile: str
    place: int


def parts_of(printed: str) -> dict[str, list[MigPart]]:
    """Return the MIG devices of each GPU that `nvidia-smi -L` lists, by the GPU's UUID."""
    found: dict[str, list[MigPart]] = {}
    on: list[MigPart] = []
    for line in printed.splitlines():
        if gpu := _GPU.match(line):
            on = found.setdefault(uuid_of(gpu[2]), [])
        elif (part := _PART.match(line)) and (uuid := uuid_of(part[3])):
            on.append(MigPart(uuid, text(part[1])[:40], int(part[2])))
    return found


class PartTold(NamedTuple):
    """MIG device as the log in XML tells it; None: not told.

    Attributes:
        total_mb: MiB in all.
        used_mb: MiB used.
        instance: the GPU instance that it is in, or a part of.
    """

    total_mb: int
    used_mb: int | None
    instance: float | None


def memory_of(printed: str) -> dict[tuple[str, int], PartTold]:
    """Return what the log in XML tells of each MIG device, by GPU and place."""
    path: list[str] = []
    said: dict[str, str] = {}
    found: dict[tuple[str, int], PartTold] = {}
    keys = {
        "gpu/uuid": "uuid",
        "mig_device/index": "index",
        "mig_device/gpu_instance_id": "instance",
        "fb_memory_usage/total": "total",
        "fb_memory_usage/used": "used",
    }

    def opens(name: str, _: object) -> None:
        path.append(name)
        if name == "mig_device":
            said.update(index="", instance="", total="", used="")

    def tells(data: str) -> None:
        if key := keys.get("/".join(path[-2:])):
            said[key] = said.get(key, "") + data

    def ends(name: str) -> None:
        path.pop()
        if name == "gpu":
            said.clear()
        if name != "mig_device":
            return
        place, total = number(said["index"], 0, 999), _mib(said["total"])
        if place is not None and total:
            used = _mib(said["used"])
            at = (uuid_of(said.get("uuid")), int(place))
            found[at] = PartTold(
                math.floor(total),
                None if used is None else math.ceil(used),
                number(said["instance"].strip(), 0, 999),
            )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = opens, ends
    parser.CharacterDataHandler = tells
    with suppress(expat.ExpatError):  # what is complete before it counts
        parser.Parse(printed, True)
    return found


def _mib(said: str) -> float | None:
    return number(said.removesuffix("MiB").strip(), 0, MAX_MB)


def least_mb(profile: str) -> int | None:
    """Return the MiB that a MIG device of a profile such as `3g.20gb` has at the least."""
    size = _SIZE.search(profile)
    return None if size is None else int(int(size[1]) * 1024 * _SURE)


def rows_of(
    parent: DeviceSample,
    parts: list[MigPart],
    memory: Mapping[tuple[str, int], PartTold],
    apps: Apps,
) -> list[DeviceSample]:
    """Return a row for each MIG device of a GPU; see `nvml.mig.parts` for its index.

    A process that is named on the GPU itself may be on any of its parts: then no part's processes
    are known.
    """
    instances: dict[str, float] = {}
    rows = []
    on_parent, unseen = apps.on(parent.uuid)
    if on_parent:
        unseen = ON_PARENT
    for part in parts:
        processes, why = (None, unseen) if unseen else apps.on(part.uuid)
        said = memory.get((parent.uuid, part.place))
        total_mb, used_mb, of = said or (least_mb(part.profile), None, None)
        if of is not None:
            instances[part.uuid] = of
        name = name_of(f"{parent.name}{PART}{part.profile}")
        row = DeviceSample(
            uuid=part.uuid,
            index=100 * (parent.index + 1) + part.place,
            name=name,
            model=model_of(name),
            total_mb=total_mb,
            system_mb=system_mb_of(total_mb),
            used_mb=used_mb,
            reason="" if total_mb else "nvidia-smi does not tell how much memory it has",
            memory_utilization_pct=percent(used_mb, total_mb),
            parent=parent.uuid,
            compute_mode=parent.compute_mode,
            processes=processes,
            unseen=why,
        )
        rows.append(row)
    return apart(rows, instances)
