"""Steps of clients: what they send, and when it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.walks.scenery import AGENTS, RECENT, Scenery
from tests.pools import OTHER, OWN, SCRIPTS

if TYPE_CHECKING:
    from tests.model.world import Step


class Clients(Scenery):
    """Clients of the pools, and the time that passes."""

    def mix(self, pool: int) -> Step:
        """A calm pool with small leases: two versions side by side, and a client with scripts."""
        rng, number, what = self.rng, self.some(pool), self.rng.random()
        if what < 0.3:
            return ["way", {"name": rng.choice((OWN, OWN, OTHER, SCRIPTS))}]
        if what < 0.5 and number < len(self.asks[pool]):
            return ["renew", {"number": number, "fence": rng.choice(("own", "none"))}]
        if what < 0.75 and number < len(self.asks[pool]):
            return ["release", {"number": number, "plant": 0}]
        ask = {"agent": rng.choice(AGENTS), "memory_mb": rng.choice((20, 50, 100)), "devices": 1,
               "exclusive": 0, "ttl_ms": 30_000, "max_hold_ms": rng.choice((0, 0, 20_000)),
               "priority": 0, "host": "*", "model": rng.choice(("*", "m0")),
               "placement": rng.choice(("spread", "pack")), "on_unavailable": "refuse"}  # fmt: skip
        self.asks[pool].append(ask)
        return ["acquire", {"number": len(self.asks[pool]) - 1, "ask": ask, "wait_ms": 0}]

    def renew(self, pool: int) -> Step:
        pick, chance = self.rng.choice, self.rng.random()
        number = self.some(pool)
        if chance < 0.3:
            owner = "o1" if chance < 0.02 else ""
            return ["recover", {"number": number, "owner": owner} | self.later()]
        if chance > 0.9:
            return self.renew_many(pool)
        args = {"number": number, "fence": pick(("own", "own", "own", "own", "none", "wrong"))}
        if chance > 0.75:
            args["ttl_ms"] = pick((1000, 20_000, 0))
        elif chance < 0.32:
            args["owner"] = "o2"
        return ["renew", args | self.later()]

    def renew_many(self, pool: int) -> Step:
        """All that a process holds, as its renewing thread says it; now and then not quite."""
        pick, made = self.rng.choice, len(self.asks[pool])
        recent = range(max(0, made - RECENT), made + 1)
        numbers = self.rng.sample(recent, self.rng.randint(1, len(recent)))
        fences, ttls = ("own",) * 7 + ("none", "wrong"), (None,) * 5 + (1000, 20_000, 0)
        args = {"leases": [(number, pick(fences), pick(ttls)) for number in numbers]}
        if self.rng.random() < 0.05:
            args["owner"] = "o1"
        return ["renew_many", args | self.later()]

    def release(self, pool: int) -> Step:
        args = {"number": self.some(pool), "plant": int(self.rng.random() < 0.7)}
        if self.rng.random() < 0.1:
            args["owner"] = "o2"
        return ["release", args | self.later()]

    def revoke(self, pool: int) -> Step:
        return [
            "revoke",
            {"number": self.some(pool), "force": self.rng.randint(0, 1)} | self.later(),
        ]

    def reap(self, pool: int) -> Step:
        return ["reap", {"remembers": True} if self.rng.random() < 0.8 else {}]

    def deliver(self, pool: int) -> Step:
        return ["deliver", {"number": self.rng.randrange(9), "again": self.rng.random() < 0.3}]

    def time(self, pool: int) -> Step:
        """Microseconds to seconds; a leap of the clock, a step back."""
        chance = self.rng.random()
        if chance < 0.03:
            return ["time", {"us": self.rng.choice((10_001, 25_000, 70_000)) * 1000}]
        if chance < 0.06:
            return ["time", {"us": -self.rng.choice((1, 900, 5000, 20_000)) * 1000}]
        return [
            "time",
            {"us": self.rng.choice((0, 7, 1000, 99_000, 500_000, 3_000_000, 6_000_001, 9_000_000))},
        ]
