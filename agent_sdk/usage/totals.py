"""Totals of use since the pool began: what its finished leases had, by team."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.readings import read_known, text_or_none
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
        {team: _sums(line or "") for team, line in zip(teams, lines, strict=True)},
        {most: int(n or 0) for most, n in zip(PEAKS, counts, strict=True)},
    )


def _sums(line: str) -> UseSums:
    sums = Adder()
    sums.add_line(line)
    return UseSums(**sums.result()[0])
