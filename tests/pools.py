"""A pool under test: the real scripts on a real server, with the clock in the test's hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import redis
from agent_sdk.keys import Keys
from agent_sdk.scripts import VERBS, assemble

SKEWED_TIME = """
local B = {}
do
  local t = redis.call('TIME')
  B.now_us = t[1] * 1000000 + t[2] + (redis.call('GET', KEYS[1] .. ':test_skew_ms') or 0) * 1000
end
"""
"""Takes the place of lua/lib/time.lua: Redis's own time plus what the test asked for."""

names = (f"t{n}" for n in itertools.count())


@dataclass
class Pool:
    """Verbs by their names; every reply as a list: tag, now, next due, epoch, more, then the rest."""

    redis: redis.Redis
    keys: Keys = field(default_factory=lambda: Keys(f"{next(names)}-{uuid4().hex[:8]}"))

    def __post_init__(self) -> None:
        self.scripts = {v: assemble(v, instead={"time": SKEWED_TIME}) for v in VERBS}
        for script in self.scripts.values():
            self.redis.script_load(script.source)

    def run(self, verb: str, *args: Any) -> list[Any]:
        reply: Any = self.redis.evalsha(self.scripts[verb].sha, 1, self.keys.base, *args)
        assert isinstance(reply, list)
        return reply

    def skew(self, ms: int) -> None:
        """Move the pool's time forward, or back, by ms."""
        self.redis.incrby(f"{self.keys.base}:test_skew_ms", ms)

    def live_on(self, ms: int, host: str = "h1", devices: tuple[Any, ...] = ()) -> None:
        """Let ms pass as they pass in a pool that is alive: a host reports every 5 s."""
        while ms > 0:
            self.skew(min(ms, 5000))
            ms -= 5000
            self.report(devices, host=host)

    def report(
        self,
        devices: tuple[Any, ...] = (),
        *,
        host: str = "h1",
        deadline_ms: int = 15000,
        sampled_ms: int = 0,
        epoch: str = "",
        safe_mode: int = 0,
    ) -> list[Any]:
        flat: list[Any] = []
        for uuid, fields in devices:
            flat += [uuid, len(fields)]
            for pair in fields.items():
                flat += pair
        return self.run(
            "report", 1, host, deadline_ms, sampled_ms, epoch, safe_mode, "test", *flat
        )

    def acquire(self, token: str | None = None, agent: str = "agent", **ask: Any) -> list[Any]:
        get = {
            "memory_mb": 900, "devices": 1, "exclusive": 0, "ttl_ms": 30000, "max_hold_ms": 0,
            "priority": 0, "host": "*", "model": "*", "placement": "spread",
            "on_unavailable": "refuse", "client": "client", "pid": "1:1", "owner": "",
        } | ask  # fmt: skip
        return self.run("acquire", 1, token or str(uuid4()), agent, *get.values())

    def renew(self, token: str, fence: str = "", ttl_ms: str | int = "") -> list[Any]:
        return self.run("renew", 1, token, fence, ttl_ms)

    def release(self, token: str, plant: int = 1) -> list[Any]:
        return self.run("release", 1, token, plant)

    def reap(self) -> list[Any]:
        return self.run("reap", 1)

    def hash(self, name: str) -> dict[str, str]:
        row: Any = self.redis.hgetall(f"{self.keys.base}:{name}")
        return dict(row)

    def state(self) -> dict[str, Any]:
        """The whole key space of the pool, to compare before and after."""
        found = {}
        for key in sorted(self.redis.scan_iter(f"{self.keys.base}*", count=1000)):
            kind = self.redis.type(key)
            if kind == "hash":
                found[key] = self.redis.hgetall(key)
            elif kind == "zset":
                found[key] = self.redis.zrange(key, 0, -1, withscores=True)
            elif kind == "set":
                found[key] = self.redis.smembers(key)
            elif kind == "string":
                found[key] = self.redis.get(key)
            elif kind == "stream":
                found[key] = self.redis.xlen(key)
        return found


def device(uuid: str, total_mb: int = 1000, **more: Any) -> tuple[str, dict[str, Any]]:
    """A device as a reporter says it; simulated, so nothing cools unless simulated=0."""
    fields = {
        "index": 0, "name": "Test GPU", "model": "m1", "total_mb": total_mb, "reserve_mb": 0,
        "used_mb": 0, "state": "ok", "simulated": 1,
    }  # fmt: skip
    return uuid, fields | more
