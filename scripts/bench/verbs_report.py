"""Figures of `verbs.py`, and the page that tells them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata

from bench import LEASE_VERBS, PLACES, PLAIN, Footprint, table
from crowd import LOCK, SDK

CLIENT_TIME = """\
One thread, one call after another; 8 simulated devices on one host. On one core, client and server
share its caches and a call costs what both compute; on two, each call also waits until the other
core wakes up, which makes all ratios smaller. The scheduler gives an unpinned client either."""


@dataclass(frozen=True, slots=True)
class VerbCost:
    """Server time of one verb, one call at a time and many in one pipeline, in µs and in PLAINs."""

    verb: str
    single_us: float
    single_ratio: float
    pipelined_us: float
    pipelined_ratio: float


@dataclass(frozen=True, slots=True)
class VerbCalls:
    """Calls of one run of a verb's script."""

    verb: str
    calls: int
    by_command: dict[str, int]


@dataclass(frozen=True, slots=True)
class LevelCost:
    """Server time in a pool of some size, in µs."""

    devices: int
    leases: int
    acquire_us: float
    renew_us: float
    release_us: float


@dataclass(frozen=True, slots=True)
class PairCost:
    """One client's acquire and release, in µs, in raw PINGs, bare pairs and Lock pairs."""

    place: str
    client: str
    us: float
    pings: float
    bares: float
    locks: float


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, and the figure that came out."""

    name: str
    limit: float
    figure: float

    @property
    def met(self) -> bool:
        """Return whether the figure is within the limit."""
        return self.figure <= self.limit


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run found."""

    server: str
    rounds: int
    verbs: tuple[VerbCost, ...]
    calls: tuple[VerbCalls, ...]
    levels: tuple[LevelCost, ...]
    pairs: tuple[PairCost, ...]
    crowds: tuple[tuple[str, float, float, float], ...]
    footprint: Footprint
    goals: tuple[Goal, ...]


def markdown(found: Results) -> str:
    """Return the report."""
    foot = found.footprint
    setting = (
        f"{found.server}, unix socket, Python {platform.python_version()}, redis-py"
        f" {metadata.version('redis')}, {os.cpu_count()} cores; medians of {found.rounds} rounds,"
        " everything interleaved."
    )
    weight = (
        f"{foot.bytes_per_lease:.0f} bytes, over {foot.leases:,} leases of one device, everything"
        f" counted: {', '.join(f'{name} {size}' for name, size in foot.by_key.items())}; the rest"
        " is the server's tables of keys and of their ends, agents and stats."
    )
    parts = [
        "# What a lease costs",
        setting,
        "## Server time of a verb",
        f"64 devices, no other leases, host any. `x` = times an EVALSHA of {PLAIN}, same rounds.",
        table(
            ["verb", "µs, one by one", "x", "µs, pipelined", "x"],
            [
                [v.verb, f"{v.single_us:.1f}", f"{v.single_ratio:.1f}",
                 f"{v.pipelined_us:.1f}", f"{v.pipelined_ratio:.1f}"]
                for v in found.verbs
            ],
        ),
        "## What a verb calls",
        table(
            ["verb", "redis.calls", "which"],
            [
                [c.verb, str(c.calls), ", ".join(f"{n} {name}" for name, n in c.by_command.items())]
                for c in found.calls
            ],
        ),
        "## Server time by size",
        "µs, pipelined, host any, 8 leases at a time. Where leases are many, no device is idle.",
        table(
            ["devices", "leases", *LEASE_VERBS],
            [
                [f"{level.devices:,}", f"{level.leases:,}", f"{level.acquire_us:.1f}",
                 f"{level.renew_us:.1f}", f"{level.release_us:.1f}"]
                for level in found.levels
            ],
        ),
        "## Client time of a pair",
        CLIENT_TIME,
        table(
            ["client and server on", "client", "µs", "PINGs", "x bare", "x Lock"],
            [
                [p.place, p.client, f"{p.us:.0f}", f"{p.pings:.2f}", f"{p.bares:.2f}",
                 f"{p.locks:.2f}"]
                for p in found.pairs
            ],
        ),
        "## A hundred clients at once",
        f"µs per pair, client and server on {[*PLACES][-1]}.",
        table(
            ["clients", SDK, LOCK, "x"],
            [[name, *(f"{us:.0f}" for us in both), f"{share:.2f}"]
             for name, *both, share in found.crowds],
        ),
        "## Memory of a lease",
        weight,
        "## Goals",
        "\n".join(map(verdict, found.goals)),
    ]  # fmt: skip
    return "\n\n".join(parts)


def verdict(goal: Goal) -> str:
    """Return one line that says whether a goal is met."""
    said = "met" if goal.met else "NOT met"
    return f"- {said}: {goal.name} {goal.figure:.4g}, goal at most {goal.limit:g}"
