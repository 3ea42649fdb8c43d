"""Totals of use since the pool began: what its finished leases had, by team."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.readings import read_known, text_or_none

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read

PEAKS: Final = ("0.1", "0.25", "0.5", "0.75", "0.9", "1", "+Inf")
"""Upper bounds of the buckets of peaks, as `lua/lib/usage.lua` writes them."""

_WORD = re.compile(r"([a-z_]+)=([0-9]{1,20})")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """Sums over all finished leases of a team.

    Attributes:
        leases: how many have ended.
        gpu_ms: GPU-time, of each device by the part that the lease had of it.
        known_gpu_ms: of `gpu_ms`, the time that hosts have observed.
        busy_gpu_ms: of `known_gpu_ms`, the time in which the lease's processes computed.
        mb_ms: MiB-time that was leased.
        above_mb_ms: of `mb_ms`, what was beyond the peak of leases whose peak is known.
        energy_mj: millijoules, where hosts know them.
        waits, waited_ms: leases that had waited, and how long.
    """

    leases: int = 0
    gpu_ms: int = 0
    known_gpu_ms: int = 0
    busy_gpu_ms: int = 0
    mb_ms: int = 0
    above_mb_ms: int = 0
    energy_mj: int = 0
    waits: int = 0
    waited_ms: int = 0


_NAMES: Final = frozenset(each.name for each in fields(UsageTotal))


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Totals of some teams.

    Attributes:
        teams: by name; a team with no finished lease has zeros.
        peaks: how many leases of the whole pool had their peak by each bound of PEAKS: the part of
            their memory that they used. A lease is in one bucket.
    """

    teams: Mapping[str, UsageTotal] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)


def read(keys: Keys, teams: Sequence[str]) -> Generator[Read, Answer, UsageTotals]:
    """Read the totals of these teams, in one command: a client may make up any number of others."""
    peaks = (f"peak {most}" for most in PEAKS)
    answer = yield from read_known(keys, ("HMGET", keys.usage_total, *teams, *peaks))
    return _totals(answer, teams)


@of_known_form
def _totals(answer: Answer, teams: Sequence[str]) -> UsageTotals:
    (found,) = answer.raw
    said = [text_or_none(each) for each in found]
    lines, counts = said[: len(teams)], said[len(teams) :]
    return UsageTotals(
        {team: _total(line or "") for team, line in zip(teams, lines, strict=True)},
        {most: int(n or 0) for most, n in zip(PEAKS, counts, strict=True)},
    )


def _total(line: str) -> UsageTotal:
    return UsageTotal(**{name: int(n) for name, n in _WORD.findall(line) if name in _NAMES})
