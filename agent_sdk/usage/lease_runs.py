"""Runs of leases that are in no sum of use yet: lines of ended ones, and records of active ones.

What a run adds to the sums is reckoned as `lua/lib/usage.lua` does when it folds a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.state.readings import LONGEST
from agent_sdk.usage.period import DAY_MS, HOUR_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_sdk.usage.sums import Adder

_WORD: Final = re.compile(r"(?:^| )([a-z_]+)=([^ ]*)")

_WHERE: Final = re.compile(r" on ([^|]*)\|(.*)$", re.DOTALL)

CPU: Final = ("-", "cpu")
"""Host and model of a lease on a CPU."""

GONE: Final = ("-", "-")
"""Host and model of a lease on devices that are registered no more."""


@dataclass(frozen=True, slots=True)
class LeaseRun:
    """Run of a lease, from its grant to its end or until now.

    Attributes:
        devices: (device id, MiB) of each.
        gpus: devices, each by the part of it that the lease has.
        ended_ms: when it ended; None: it runs.
        waited_ms: how long it had waited; None: it had not.
    """

    token: str
    agent: str
    team: str
    host: str
    model: str
    devices: tuple[tuple[str, int], ...]
    gpus: float
    granted_ms: int
    ended_ms: int | None = None
    waited_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """Growth of the sums with each ms of a run."""

    sums: Mapping[str, float]
    gpus: float

    def add(self, to: Adder, ms: int) -> None:
        """Add so many ms."""
        for name, rate in self.sums.items():
            to.add(name, rate * ms)

    def add_hours(self, to: Adder, day_ms: int, from_ms: int, until_ms: int) -> None:
        """Add the time from then until then, within a day, to the hours of that day."""
        while from_ms < until_ms:
            hour = (from_ms - day_ms) // HOUR_MS
            next_ms = min(until_ms, day_ms + (hour + 1) * HOUR_MS)
            to.add_hour(hour, self.gpus * (next_ms - from_ms))
            from_ms = next_ms


def number(text: str | None) -> int | None:
    """Return a number by its text; None: there is none that is legible."""
    return int(text) if text and len(text) <= LONGEST and text.isdecimal() else None


def whole(text: str) -> int:
    """Return a number by its text.

    Raises:
        ValueError: it is not legible.
    """
    found = number(text)
    if found is None:
        raise ValueError(f"no number: {text!r:.40}")
    return found


def held(devices: str) -> tuple[tuple[str, int], ...]:
    """Return (device id, MiB) of each device in a line's `uuid=mb,...`.

    Raises:
        ValueError: it has another form.
    """
    parts = [part.rpartition("=") for part in devices.split(",") if part]
    return tuple((uuid, whole(mb)) for uuid, _, mb in parts)


def ended_run(token: str, line: dict[str, str]) -> LeaseRun:
    """Return the run of a line of `ended`, by its words; see `words_of`."""
    return LeaseRun(
        token=token,
        agent=line["agent"],
        team=line.get("team") or DEFAULT_TEAM,
        host=line["host"],
        model=line["model"],
        devices=held(line.get("devices", "")),
        gpus=gpus_of(line["gpus"]),
        granted_ms=whole(line["granted_at_ms"]),
        ended_ms=max(whole(line["granted_at_ms"]), whole(line["ended_at_ms"])),
        waited_ms=number(line.get("waited_ms")),
    )


def words_of(line: str) -> dict[str, str]:
    """Return the words of a line of `ended`, with `host` and `model`, by name."""
    found = dict(_WORD.findall(line))
    if where := _WHERE.search(line):
        found["host"], found["model"] = where[1], where[2]
    return found


def gpus_of(text: str) -> float:
    """Return how many GPUs a lease has.

    Raises:
        ValueError: it is no such number.
    """
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,18})?(e-[0-9]{1,3})?", text):
        raise ValueError(f"no number of GPUs: {text!r:.40}")
    return float(text)


def active_run(
    token: str, record: Mapping[str, str], devices: Mapping[str, Mapping[str, str]]
) -> LeaseRun:
    """Return the run of an active lease, by its record.

    `devices`: those that are registered, by id: host, model, total_mb, system_mb, exclusive.
    """
    has = held(record.get("devices", ""))
    host, model = GONE if has else CPU
    gpus = 0.0
    for uuid, mb in has:
        if of := devices.get(uuid):
            host, model = of["host"], of["model"]
            total_mb = whole(of["total_mb"]) - whole(of.get("system_mb") or "0")
            alone = of.get("exclusive") == token or mb >= total_mb
            gpus += 1 if alone else mb / total_mb
    return LeaseRun(
        token=token,
        agent=record["agent"],
        team=record.get("team") or DEFAULT_TEAM,
        host=host,
        model=model,
        devices=has,
        gpus=gpus,
        granted_ms=whole(record["granted_at_ms"]),
    )


def rates(run: LeaseRun, ended_ms: int, uses: Mapping[str, Mapping[str, int]]) -> Rates:
    """Return what each ms of a run adds.

    Args:
        run: the run.
        ended_ms: its end, or now.
        uses: what its hosts have seen of it, by device: known_ms, busy_ms, peak_mb, energy_mj.
    """
    held_ms = max(0, ended_ms - run.granted_ms)
    of = [uses.get(uuid, {}) for uuid, _ in run.devices]
    known_ms = sum(use.get("known_ms", 0) for use in of)
    busy_ms = sum(use.get("busy_ms", 0) for use in of)
    energy_mj = sum(use.get("energy_mj", 0) for use in of)
    peaks = [use.get("peak_mb") for use in of]
    mb = sum(mb for _, mb in run.devices)
    all_ms = max(1, held_ms * len(of), known_ms)  # more than all is a clock that stepped
    above_mb = max(0, mb - sum(p or 0 for p in peaks)) if peaks and None not in peaks else 0
    return Rates(
        {
            "held_ms": 1,
            "gpu_ms": run.gpus,
            "mb_ms": mb,
            "known_gpu_ms": run.gpus * known_ms / all_ms,
            "busy_gpu_ms": run.gpus * busy_ms / all_ms,
            "above_mb_ms": above_mb,
            "energy_mj": energy_mj / max(1, held_ms),
        },
        run.gpus,
    )


def pieces(from_ms: int, until_ms: int) -> Iterator[tuple[int, int, int]]:
    """Yield each day, by its beginning, with the part of a time that is in it, from and until.

    A time without length is a part of one day.
    """
    while True:
        day_ms = from_ms - from_ms % DAY_MS
        to_ms = min(until_ms, day_ms + DAY_MS)
        yield day_ms, from_ms, to_ms
        if to_ms >= until_ms:
            return
        from_ms = to_ms
