"""Agents that wait, on three hosts, from one seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    import random

HOSTS = ("h0", "h1", "h2")


AGENTS = ("ann", "bob", "cy")


ORDINARY = {
    "safe_mode": 0, "allow_fractional_shares": 1, "max_memory_per_agent_mb": 1_048_576,
    "max_leases_per_agent": 256,
}  # fmt: skip


@dataclass
class World:
    """Six devices on three hosts, three agents, and time, all from one seed."""

    pool: Pool
    rng: random.Random
    turbulent: bool
    asks: dict[str, dict[str, Any]] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, dict[str, Any]] = field(default_factory=dict)
    highest: int = 0
    capped: int = 0

    def begin(self) -> None:
        """Every host reports."""
        for n in range(6):
            self.hardware[f"g{n}"] = {
                "total_mb": self.rng.choice((1000, 2000, 3000)), "model": f"m{n % 2}", "index": n,
                "simulated": n % 2,
            }  # fmt: skip
        for host in HOSTS * 3:
            self.report(host)

    def report(self, host: str | None = None) -> None:
        """A host's two devices as they are."""
        host = host or self.rng.choice(HOSTS)
        first = 2 * HOSTS.index(host)
        mine = tuple(device(f"g{n}", **self.hardware[f"g{n}"]) for n in (first, first + 1))
        self.pool.report(mine, host=host, sampled_ms=self.rng.choice((0, self.pool.reap()[1])))

    def new(self) -> None:
        """A new token, mostly one that waits."""
        pick, chance = self.rng.choice, self.rng.random()
        name = token(f"t{len(self.asks)}")
        self.asks[name] = {
            "agent": pick(AGENTS), "memory_mb": pick((0, 100, 300, 700, 900, 1500, 2500)),
            "devices": pick((2, 2, 3)) if chance < 0.15 else 1, "exclusive": int(chance > 0.9),
            "host": pick(("*", "*", "*", *HOSTS)), "model": pick(("*", "*", "m0", "m1")),
            "priority": pick((0, 0, 0, 5)), "placement": pick(("spread", "pack")),
            "ttl_ms": pick((2000, 10_000, 10_000, 0)), "client": pick(("", "c")),
            "on_unavailable": pick(("refuse", "refuse", "cpu")),
        }  # fmt: skip
        self.ask(name, wait_ms=pick((0, 60_000, 60_000, 60_000)))

    def ask(self, name: str, wait_ms: int = 60_000) -> None:
        """Ask, or ask again; what was told before stays true."""
        reply = self.pool.acquire(name, wait_ms=wait_ms, **self.asks[name])
        self.capped += reply[0] == "WAITING" and reply[5] == -1
        if reply[0] == "LOST":
            assert self.lost.setdefault(name, reply[5]) == reply[5], "S4"
        elif reply[0] == "GRANTED":
            assert name not in self.lost, f"S4: {name} came back"
            fence = granted(reply).fence
            if name in self.fences:
                assert self.fences[name] == fence, f"S6: {name} was granted twice"
            else:
                assert fence > self.highest, "S3"
                self.fences[name] = self.highest = fence
        else:
            assert reply[0] in {"WAITING", "REFUSED", "AGAIN"}, reply
            assert name not in self.fences, f"{name} held it already"

    def some(self) -> str | None:
        """One of the last tokens."""
        return self.rng.choice(list(self.asks)[-25:]) if self.asks else None

    def poll(self) -> None:
        """Everybody who waits asks again, some for the last time; a few are dead."""
        for name in list(self.asks)[-25:]:
            if self.pool.redis.hget(self.pool.keys.record(name), "state") in {"waiting", "offered"}:
                chance = self.rng.random()
                if chance < 0.9:
                    self.ask(name, wait_ms=60_000 if chance < 0.85 else 0)

    def release(self) -> None:
        """One is given back or leaves."""
        if name := self.some():
            self.pool.release(name)

    def repeat(self) -> None:
        """One is asked again, whatever became of it."""
        if name := self.some():
            self.ask(name)

    def revoke(self) -> None:
        """An operator ends one."""
        if name := self.some():
            self.pool.revoke(name, self.rng.randint(0, 1))

    def time_passes(self) -> None:
        """Seconds, and now and then a leap."""
        leap = self.rng.random() < 0.02
        self.pool.skew(40_000 if leap else self.rng.choice((1, 100, 3000, 3000, 6000)))

    def change(self) -> None:
        """Hardware: used by others, lost, resized; or drained."""
        uuid, chance = self.rng.choice(list(self.hardware)), self.rng.random()
        if chance < 0.3:
            self.pool.drain(uuid, drained=int(self.rng.random() < 0.4))
        elif chance < 0.4:
            self.pool.drain(self.rng.choice(HOSTS), "host", int(self.rng.random() < 0.3))
        else:
            self.hardware[uuid] |= self.rng.choice((
                {"used_mb": self.rng.choice((0, 0, 300, 900))}, {"used_mb": 0},
                {"state": self.rng.choice(("ok", "ok", "lost"))},
                {"total_mb": self.rng.choice((1000, 2000, 3000))},
            ))  # fmt: skip
            self.report()

    def policy(self) -> None:
        """An operator turns a knob, and mostly back."""
        if self.turbulent:
            self.pool.set_policy(**self.rng.choice((
                {"max_memory_per_agent_mb": 2500}, {"safe_mode": 1}, {"safe_mode": 0},
                {"allow_fractional_shares": 0}, {"max_leases_per_agent": 3}, *[ORDINARY] * 4,
            )))  # fmt: skip

    def step(self) -> None:
        """One operation."""
        operations = (
            (self.new, 30), (self.poll, 22), (self.repeat, 6), (self.release, 14),
            (self.time_passes, 14), (self.report, 4), (self.change, 5), (self.revoke, 1),
            (self.policy, 4),
        )  # fmt: skip
        kinds, weights = zip(*operations, strict=True)
        self.rng.choices(kinds, weights)[0]()
