"""Decisions of acquire, written a second time: plainly, with every device looked at.

The scripts find a device through sorted sets; here the devices' hashes alone are asked. Both must
say the same of every request.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Request:
    """An acquire's request, as far as placement cares."""

    memory_mb: int
    devices: int = 1
    exclusive: int = 0
    host: str = "*"
    model: str = "*"
    placement: str = "spread"


@dataclass(frozen=True)
class Device:
    """A device as its hash has it."""

    uuid: str
    host: str
    model: str
    capacity_mb: int
    free_mb: int
    up: bool
    shared: bool
    idle: bool
    whole_mb: int
    parent: str

    @classmethod
    def read(cls, uuid: str, row: dict[str, str]) -> Device:
        """From the hash alone."""
        capacity = int(row["total_mb"]) - int(row["system_mb"])
        withheld, unleased = int(row["withheld_mb"]), int(row["unleased_mb"])
        free = capacity - int(row["leased_mb"]) - withheld - unleased
        up = free > 0 and row["state"] == "ok" and row["drained"] != "1"
        unheld = row["leases"] == "0" and not withheld
        idle_mb = int(row.get("idle_unleased_mb") or 512)
        return cls(
            uuid=uuid, host=row["host"], model=row["model"], capacity_mb=capacity, free_mb=free,
            up=up, shared=up and not row["exclusive"] and (unheld or not row.get("one_lease")),
            idle=up and unheld and unleased <= idle_mb,
            whole_mb=capacity - (unleased if unleased <= idle_mb else 0),
            parent=row.get("parent", ""),
        )  # fmt: skip

    def suits(self, request: Request) -> bool:
        """Is it of the host and the model that are wanted?"""
        joins = request.devices == 1 or not self.parent
        return joins and request.host in {"*", self.host} and request.model in {"*", self.model}


def never_fits(request: Request, devices: list[Device], cap_mb: int, fractions: bool) -> str | None:
    """Return why no registered device could ever be the one asked for, under an agent's cap."""
    if request.model != "*" and request.model not in {d.model for d in devices}:
        return "model_unknown"
    if request.host != "*" and request.host not in {d.host for d in devices}:
        return "host_unknown"
    large = [d for d in devices if d.suits(request) and d.capacity_mb >= request.memory_mb]
    groups = [g for g in _groups(large) if len(g) >= request.devices]
    if not groups:
        return "never_fits"
    if not (request.exclusive or request.devices > 1 or not fractions):
        return None
    least = (sum(sorted(d.whole_mb for d in group)[: request.devices]) for group in groups)
    return None if min(least) <= cap_mb else "agent_cap"


def choices(
    request: Request, devices: list[Device], room_mb: int, fractions: bool
) -> tuple[list[set[str]], str]:
    """Every right choice of devices; and if there is none, why not now."""
    if request.memory_mb * request.devices > room_mb:
        return [], "agent_cap"
    if not (request.exclusive or request.devices > 1 or not fractions):
        return _shares(request, devices), "no_capacity"
    found, why = [], "no_capacity"
    idle = [d for d in devices if d.idle and d.suits(request) and d.free_mb >= request.memory_mb]
    for group in _groups(idle):
        if len(group) < request.devices:
            continue
        best = sum(sorted(d.free_mb for d in group)[: request.devices])
        if best > room_mb:
            why = "agent_cap"
        else:
            found += _of_sum(group, request.devices, best)
    return found, why


def _shares(request: Request, devices: list[Device]) -> list[set[str]]:
    fit = [d for d in devices if d.shared and d.suits(request) and d.free_mb >= request.memory_mb]
    if not fit:
        return []
    best = (min if request.placement == "pack" else max)(d.free_mb for d in fit)
    return [{d.uuid} for d in fit if d.free_mb == best]


def _groups(devices: list[Device]) -> list[list[Device]]:
    def of(d: Device) -> tuple[str, str]:
        return d.host, d.model

    return [list(group) for _, group in groupby(sorted(devices, key=of), key=of)]


def _of_sum(group: list[Device], count: int, best: int) -> list[set[str]]:
    """The ways to take the `count` smallest of a group; equal ones may stand for each other."""
    ordered = sorted(group, key=lambda d: d.free_mb)
    last = ordered[count - 1].free_mb
    sure = {d.uuid for d in ordered[:count] if d.free_mb < last}
    equal = [d.uuid for d in ordered if d.free_mb == last]
    found: list[set[str]] = [sure]
    for _ in range(count - len(sure)):
        found = [taken | {uuid} for taken in found for uuid in equal if uuid not in taken]
    assert best >= 0
    return found


def before(
    rows: dict[str, dict[str, str]], token: str, taken: tuple[tuple[str, int], ...]
) -> dict[str, dict[str, str]]:
    """The devices' hashes as they were before this token took what it took."""
    rows = {uuid: dict(row) for uuid, row in rows.items()}
    for uuid, mb in taken:
        row: dict[str, Any] = rows[uuid]
        row["leased_mb"] = str(int(row["leased_mb"]) - mb)
        row["leases"] = str(int(row["leases"]) - 1)
        if row["exclusive"] == token:
            row["exclusive"] = ""
    return rows
