"""Teams of a pool at one moment. Plain reads, as in `snapshot`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk import teams as declared
from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state import snapshot
from agent_sdk.state.readings import rows

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys
    from agent_sdk.teams import Sums, TeamPolicy, TeamStatus


def read(keys: Keys) -> Generator[Read, Answer, tuple[TeamStatus, ...]]:
    """Read every team that has a policy, leases or waiters, by name."""
    pool = yield from snapshot.pool(keys)
    policies, sums = yield from parties(keys)
    return declared.statuses(
        policies,
        sums,
        now_ms=pool.now_ms,
        half_life_s=pool.half_life_s,
        capacity_mb=pool.capacity_mb,
    )


def parties(
    keys: Keys,
) -> Generator[Read, Answer, tuple[dict[str, TeamPolicy], dict[str, Sums]]]:
    """Read the policies of teams by name, and the sums of agents, API keys and teams."""
    answer = yield Read((("HGETALL", keys.teams), ("HGETALL", keys.agents)))
    return _parties(answer)


@of_known_form
def _parties(answer: Answer) -> tuple[dict[str, TeamPolicy], dict[str, Sums]]:
    lines, sums = rows(answer)
    policies = {name: declared.parse(line) for name, line in lines.items()}
    return policies, declared.sums_of(sums)
