"""Pools of a walk: their hosts and devices, and who asked for what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

    from tests.model.world import Step

AGENTS = ("ann", "bob", "cy")
ORDINARY = {
    "safe_mode": 0, "allow_fractional_shares": 1, "max_memory_per_agent_mb": 1_048_576,
    "max_leases_per_agent": 256, "max_waiters_per_agent": 256, "expiry_grace_s": 5,
    "reservation_idle_s": 20,
}  # fmt: skip
TEAMS = ("default", "red", "red", "blue", "blue")
TEAMED = {"team", "tug", "quota", "relapse", "favour", "forgotten_tenure", "models",
          "upheaval"}  # fmt: skip
"""Teams of requests, and the kinds of steps that make a walk one of teams."""

QUOTAS: tuple[dict[str, int], ...] = (
    {"nominal_mb": 1000}, {"nominal_mb": 2000, "weight": 3}, {"nominal_mb": 3000},
    {"nominal_mb": 0}, {"nominal_mb": 2000, "borrow_mb": 700}, {"nominal_mb": 3000, "lend_mb": 500},
    {"nominal_mb": 1500, "max_leases": 2, "max_waiters": 2},
    {"nominal_mb": 1500, "max_priority": 5},
    {"weight": 0}, {"nominal_mb": 1000, "max_ttl_s": 10, "max_hold_s": 15}, {"nominal_mb": 4000},
)  # fmt: skip
QUOTAS_BY_MODEL: tuple[dict[str, int], ...] = (
    {"nominal_mb@m0": 1000}, {"nominal_mb@m0": 2000, "nominal_mb@m1": 1000},
    {"nominal_mb@m1": 3000, "borrow_mb": 600}, {"nominal_mb@m0": 1500, "borrow_mb@m0": 500},
    {"borrow_mb@m1": 900, "nominal_mb": 1000}, {"nominal_mb@m0": 4000, "max_leases": 2},
    {"nominal_mb": 2000, "lend_mb": 300, "nominal_mb@m1": 700}, {"nominal_mb": 1500},
    {"nominal_mb@m0": 4000, "borrow_mb@m0": 0, "borrow_mb": 0, "nominal_mb@m9": 500},
)  # fmt: skip
RECENT = 14
"""Number of the latest tokens that are still in play."""

SHAPES = (
    (("h0", 2),), (("h0", 2), ("h1", 2), ("h2", 2)), (("h0", 4), ("h1", 1)),
    (("h0", 3), ("h1", 2), ("h2", 1), ("h3", 2)),
)  # fmt: skip
"""Hosts and how many devices each has, one line a pool."""


class Scenery:
    """Pools, one of each shape, what was asked of them, and what is still to come."""

    def __init__(self, rng: Random, often: str = "") -> None:
        self.rng, self.often, self.teamed = rng, often, often in TEAMED
        self.asks: list[list[dict[str, Any]]] = [[] for _ in SHAPES]
        self.hardware: list[dict[str, dict[str, Any]]] = []
        for number, shape in enumerate(SHAPES):
            flat = [host for host, count in shape for _ in range(count)]
            self.hardware.append({
                f"g{number}{n}": {
                    "host": host, "index": n, "model": f"m{n // 2 % 2}", "simulated": n % 2,
                    "total_mb": rng.choice((1000, 2000, 3000)), "parent": "",
                }
                for n, host in enumerate(flat)
            })  # fmt: skip
        self.queue = [[n, "report", self.report(n, host)]
                      for n, shape in enumerate(SHAPES) for host, _ in shape]  # fmt: skip

    def some(self, pool: int) -> int:
        """The number of a token of late, or of one that is still to come."""
        made = len(self.asks[pool])
        return self.rng.randrange(max(0, made - RECENT), made + 1)

    def later(self) -> dict[str, bool]:
        return {"later": True} if self.rng.random() < 0.12 else {}

    def ask(self, pool: int) -> dict[str, Any]:
        """A request; what is as by default is not said."""
        pick, chance = self.rng.choice, self.rng.random()
        hosts = [host for host, _ in SHAPES[pool]]
        team = {"team": pick(TEAMS)} if self.teamed else {}
        return team | {
            "agent": pick(AGENTS),
            "memory_mb": pick((0, 100, 300, 500, 700, 900, 1000, 1500, 2500)),
            "devices": pick((2, 2, 2, 3)) if chance < 0.16 else 1, "exclusive": int(chance > 0.86),
            "ttl_ms": pick((1000, 5000, 10_000, 10_000, 30_000)) if chance < 0.98 else 0,
            "max_hold_ms": pick((0, 0, 0, 0, 20_000)), "priority": pick((0, 0, 0, 0, 5, 9)),
            "host": pick(("*", "*", *hosts)) if chance < 0.97 else "nowhere",
            "model": pick(("*", "*", "*", "m0", "m1")), "placement": pick(("spread", "pack")),
            "on_unavailable": pick(("refuse", "refuse", "refuse", "cpu")),
        }  # fmt: skip

    def new(self, pool: int) -> Step:
        self.asks[pool].append(self.ask(pool))
        return self.say(pool, len(self.asks[pool]) - 1)

    def again(self, pool: int) -> Step:
        number = self.some(pool)
        return self.new(pool) if number == len(self.asks[pool]) else self.say(pool, number)

    def say(self, pool: int, number: int) -> Step:
        """Ask for a token as it was asked for; now and then not quite."""
        pick, chance = self.rng.choice, self.rng.random()
        ask = self.asks[pool][number] | ({"memory_mb": 77} if chance < 0.02 else {})
        args = {"number": number, "ask": ask, "wait_ms": pick((0, 60_000, 60_000, 60_000))}
        if chance > 0.95:
            args["owner"] = pick(("o1", "o2"))
        elif self.teamed and number % 2:
            args["owner"] = "o1"
        if self.rng.random() < 0.1:
            args["lost"] = True
        if self.teamed:
            args |= pick(
                (
                    {},
                    {},
                    {"yields": 1},
                    {"preemptible": 1},
                    {"after": max(0, number - pick((1, 3, 5)))},
                )
            )
        return ["acquire", args | self.later()]

    def asked(self, pool: int, ask: dict[str, Any]) -> Step:
        """A new token that asks for this, and waits."""
        self.asks[pool].append(self.ask(pool) | ask)
        number = len(self.asks[pool]) - 1
        return [pool, "acquire", {"number": number, "ask": self.asks[pool][-1], "wait_ms": 60_000}]

    def report(self, pool: int, host: str, **more: Any) -> dict[str, Any]:
        mine = {uuid: {k: v for k, v in said.items() if k != "host"}
                for uuid, said in self.hardware[pool].items() if said["host"] == host}  # fmt: skip
        return {"host": host, "devices": mine, "brief": self.rng.random() < 0.6} | more

    def pass_on(self, pool: int, ms: int) -> Step:
        return [pool, "time", {"us": ms * 1000}]
