"""Totals of use since the pool began: what its finished leases had, by team."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_sdk.state.readings import list_in, read_atomically, read_known
from agent_sdk.usage.lease_runs import number
from agent_sdk.usage.sums import Adder, UseSums

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read

PEAKS: Final = ("0.1", "0.25", "0.5", "0.75", "0.9", "1", "+Inf")
"""Upper bounds of the buckets of peaks, as `lua/lib/usage.lua` writes them."""


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Totals of some teams.

    Attributes:
        teams: by name; a team with no finished lease has zeros.
        peaks: how many leases of the whole pool had their peak by each bound of PEAKS: the part of
            their memory that they used. A lease is in one bucket.
    """

    teams: Mapping[str, UseSums] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)


def read(keys: Keys, teams: Sequence[str]) -> Generator[Read, Answer, UsageTotals]:
    """Read the totals of these teams alone: a client may make up any number of others.

    A key that a hand has made another type has no totals.
    """
    peaks = (f"peak {most}" for most in PEAKS)
    yield from read_known(keys)
    (found,) = yield from read_atomically(("HMGET", keys.usage_total, *teams, *peaks))
    said = list_in(found)
    if not said:
        return UsageTotals()
    return UsageTotals(
        {team: _sums(line or "") for team, line in zip(teams, said, strict=False)},
        {most: number(n) or 0 for most, n in zip(PEAKS, said[len(teams) :], strict=False)},
    )


def _sums(line: str) -> UseSums:
    sums = Adder()
    sums.add_line(line)
    return UseSums(**sums.result()[0])
