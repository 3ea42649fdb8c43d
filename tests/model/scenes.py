"""Small worlds for the explorer: who asks for what, how often, and what has happened before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.model.entries import Ask
from tests.model.world import DEVICE

if TYPE_CHECKING:
    from tests.model.world import Step

WAIT_MS, DAY_MS, MOMENT_MS = 60_000, 86_400_000, 1001

CALLS = ("acquire", "renew", "release", "recover")

DEVICES = {"g0": DEVICE | {"simulated": 0}, "g1": DEVICE | {"index": 1}}


def asked(number: int, ask: Ask) -> Step:
    """A step by which a client asks, and waits."""
    return [0, "acquire", {"number": number, "ask": ask._asdict(), "wait_ms": WAIT_MS}]


@dataclass(frozen=True, slots=True)
class Scene:
    """A small world.

    Attributes:
        asks: of each client.
        calls: most arrivals of each of `CALLS` of each client, after the beginning.
        events: most times that each befalls it.
        policy, teams: of its pool.
        begins: steps of clients and of time before the lives that are explored.
    """

    asks: tuple[Ask, ...]
    calls: tuple[tuple[int, ...], ...]
    events: dict[str, int]
    policy: dict[str, int] = field(default_factory=dict)
    teams: dict[str, dict[str, int]] = field(default_factory=dict)
    begins: tuple[Step, ...] = ()

    @property
    def first(self) -> list[Step]:
        """Steps that make its pool."""
        first: list[Step] = [
            [0, "report", {"host": "h0", "devices": DEVICES, "deadline_ms": DAY_MS}]
        ]
        first += [[0, "policy", {"fields": self.policy}]] if self.policy else []
        return first + ([[0, "teams", {"teams": self.teams}]] if self.teams else [])


CROWD = Scene(
    (
        Ask("ann", 600, ttl_ms=20_000),
        Ask("bob", 500, exclusive=1, ttl_ms=20_000),
        Ask("cy", 500, devices=2, ttl_ms=20_000, priority=1),
    ),
    ((2, 1, 1, 1),) * 3,
    {"time": 3, "replicate": 1, "failover": 1},
)
"""Two devices, and three clients of which one wants both."""

_LENT = tuple(Ask(name, 700, ttl_ms=20_000, team="lent") for name in ("bob", "cy"))
_OWN = Ask("ann", 900, ttl_ms=20_000, team="own")

TEAMS = Scene(
    (*_LENT, _OWN),
    ((0, 1, 1, 1), (0, 1, 0, 1), (3, 0, 1, 2)),
    {"time": 1, "moment": 2, "replicate": 1, "failover": 1},
    {"reclaim_after_s": 1, "preempt_grace_s": 1, "min_runtime_s": 0, "expiry_grace_s": 1},
    {"own": {"nominal_mb": 1000}, "lent": {"nominal_mb": 0}},
    (asked(0, _LENT[0]), asked(1, _LENT[1]), asked(2, _OWN), [0, "time", {"us": MOMENT_MS * 1000}]),
)
"""Two devices that one team has borrowed, and the other whose own one of them is."""

NOTICED = replace(
    TEAMS,
    calls=((0, 1, 1, 1), (0, 1, 1, 1), (2, 1, 1, 2)),
    events={"time": 1, "moment": 3, "replicate": 0, "failover": 1},
    begins=(*TEAMS.begins, asked(2, _OWN), [0, "replicate", {}]),
)
"""The same, when one of the two has its notice, which the replica has too, and nothing later."""

SCENES = {"crowd": CROWD, "teams": TEAMS, "noticed": NOTICED}
"""All of them by name."""
