"""Steps after which many wait, or some for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.walks.losses import Losses
from tests.model.walks.scenery import ORDINARY, SHAPES

if TYPE_CHECKING:
    from tests.model.world import Step


class Waiting(Losses):
    """Waiters for what is taken."""

    def patience(self, pool: int) -> Step:
        """All is taken, and somebody waits for more than half a minute; hosts are alive."""
        small = {"memory_mb": 100, "devices": 1, "ttl_ms": 60_000, "host": "*", "model": "*"}
        held = [self.asked(pool, small | {"exclusive": 1}) for _ in self.hardware[pool]]
        big = {"memory_mb": self.rng.choice((900, 1500)), "host": "*", "model": "*", "priority": 9}
        patient = self.asked(pool, big | {"devices": self.rng.choice((1, 1, 2)), "ttl_ms": 10_000})
        self.queue += held
        for round_ in range(9):
            self.queue += [self.pass_on(pool, 4000), patient]
            if round_ % 3 == 0:
                self.queue += [
                    [pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]
                ]
        self.queue += [[pool, "release", {"number": step[2]["number"]}] for step in held]
        return patient[1:]

    def crowd(self, pool: int) -> Step:
        """Many small requests wait when a host comes back, and the policy may be another."""
        host = self.rng.choice(SHAPES[pool])[0]
        small = {"devices": 1, "exclusive": 0, "memory_mb": self.rng.choice((100, 300))}
        self.queue += [self.asked(pool, small) for _ in range(10)]
        self.queue.append([pool, "drain", {"what": "host", "name": host, "drained": 0}])
        self.queue.append([pool, *self.rng.choice((self.policy, self.again, self.release))(pool)])
        return ["drain", {"what": "host", "name": host, "drained": 1}]

    def standoff(self, pool: int) -> Step:
        """Leases that end late or never hold some of each device; larger requests wait beside them.

        Some devices are dead, strangers use others, small requests come by, and time goes on.
        """
        pick, hosts = self.rng.choice, [host for host, _ in SHAPES[pool]]
        ends = {"ttl_ms": pick((0, 30_000)), "max_hold_ms": pick((0, 0, 60_000, 90_000))}
        bit = {"agent": "dee", "memory_mb": 100, "devices": 1, "host": "*", "model": "*"} | ends
        held = [self.asked(pool, bit | {"exclusive": 0}) for _ in self.hardware[pool]]
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= pick(
                ({}, {}, {}, {"state": "lost"}, {"used_mb": 300}, {"used_mb": 700})
            )
        big = {"ttl_ms": 10_000, "host": "*", "model": "*", "on_unavailable": "refuse"}
        asks = ({"devices": 2, "memory_mb": 500}, {"devices": 1, "memory_mb": 1000},
                {"devices": 1, "exclusive": 1, "memory_mb": 300},
                {"devices": 2, "memory_mb": 200})  # fmt: skip
        patient = [self.asked(pool, big | ask) for ask in asks]
        self.queue += [*held, *([pool, "report", self.report(pool, host)] for host in hosts)]
        for round_ in range(self.rng.randrange(10, 34)):
            if round_ == 5:  # one comes later, when the others reserve
                later = {"devices": 1, "memory_mb": 600, "exclusive": 1}
                patient.append(self.asked(pool, big | later))
            self.queue += [self.pass_on(pool, 4000), *patient]
            if round_ % 3 == 0:
                self.queue += [[pool, "report", self.report(pool, host)] for host in hosts]
            if round_ % 2 == 1:
                small = {
                    "memory_mb": pick((200, 600)),
                    "devices": 1,
                    "max_hold_ms": pick((0, 20_000, 75_000)),
                }
                self.queue.append(self.asked(pool, small))
                renewed = pick(held)[2]["number"]
                self.queue.append([pool, "renew", {"number": renewed}])
            if round_ % 10 == 9:
                self.queue.append([pool, *self.drain(pool)])
                urgent = self.asked(pool, big | {"devices": 1, "memory_mb": 50, "priority": 9})
                free = [[pool, "release", {"number": x[2]["number"]}] for x in (pick(held), urgent)]
                self.queue += [urgent, free[0], urgent, self.pass_on(pool, 3000), free[1]]
        self.queue += [[pool, "release", {"number": step[2]["number"]}] for step in held[::2]]
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok"}
        cap_mb = pick((*[ORDINARY["max_memory_per_agent_mb"]] * 3, 2500))
        return ["policy", {"fields": ORDINARY | {"max_memory_per_agent_mb": cap_mb}}]
