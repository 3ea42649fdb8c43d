"""Accidents: what a pool forgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.walks.hosts import Hosts

if TYPE_CHECKING:
    from tests.model.world import Step


class Losses(Hosts):
    """Pools that lose what they knew."""

    def lose(self, pool: int) -> Step:
        """A replica, and now and then its hour: then those who hold something say so."""
        chance = self.rng.random()
        if chance < 0.6:
            return ["replicate", {}]
        if chance > 0.95:
            return ["forget", {}]
        if chance > 0.85:
            return self.rng.choice((self.lose_a_hold, self.lose_twice))(pool)
        numbers = [self.some(pool) for _ in range(6)]
        self.queue += [[pool, "recover", {"number": number}] for number in numbers]
        self.queue += [self.pass_on(pool, 10_001)]
        self.queue += [[pool, *self.again(pool)] for _ in range(2)]
        self.queue += [[pool, "recover", {"number": self.rng.choice(numbers)}]]
        us = self.rng.choice((200_000, 4_000_000, 6_000_000))
        kind = self.rng.choice(("failover", "failover", "put_back", "put_back"))
        if self.rng.random() < 0.3:
            self.queue.insert(0, [pool, *self.renew_many(pool)])
        clean = {"clean": True} if kind == "put_back" and self.rng.random() < 0.5 else {}
        return [kind, {"us": us} | clean]

    def lose_a_hold(self, pool: int) -> Step:
        """A lease that may be held for so long, granted after the clock stepped back, is lost."""
        small = {"memory_mb": 100, "devices": 1, "exclusive": 0, "host": "*", "model": "*"}
        held = self.asked(pool, small | {"max_hold_ms": 20_000, "agent": "dan"})
        self.queue += [[pool, "reap", {}], [pool, "replicate", {}], held]
        self.queue += [[pool, "failover", {"us": 200_000}]]
        self.queue.append([pool, "recover", {"number": held[2]["number"]}])
        return self.pass_on(pool, -5000)[1:]

    def lose_twice(self, pool: int) -> Step:
        """The second loss is noticed, the first was not: two may hold one device."""
        whole = {"memory_mb": 100, "devices": 1, "exclusive": 1, "host": "*", "model": "*"}
        first, second = (self.asked(pool, whole | {"agent": name}) for name in ("dan", "eve"))
        self.queue += [first, [pool, "put_back", {"us": 200_000}], second]
        self.queue += [[pool, "replicate", {}], [pool, "failover", {"us": 200_000}]]
        self.queue += [[pool, "recover", {"number": step[2]["number"]}] for step in (first, second)]
        return ["replicate", {}]
