"""A pool under test: the real scripts on a real server, with the clock in the test's hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.exceptions import ResponseError

from agent_sdk.keys import Keys
from agent_sdk.protocol.messages import Answer
from agent_sdk.protocol.replies import DEVICE_WORDS
from agent_sdk.scripts import library as functions
from agent_sdk.scripts.source import CALLED, assemble
from agent_sdk.state import tombstones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import redis
    from redis.client import Pipeline

    from agent_sdk.scripts.library import Library
    from agent_sdk.scripts.source import Script

SKEWED_TIME = """
local function time_us()
  local t = redis.call('TIME')
  local test = redis.call('MGET', KEYS[1] .. ':test_frozen_us', KEYS[1] .. ':test_skew_ms')
  return (test[1] or t[1] * 1000000 + t[2]) + (test[2] or 0) * 1000
end
"""
"""Takes the place of lua/lib/time.lua: Redis's own time, or the moment at which the test froze it,
plus what the test asked for."""

UNREADY = {"bad_request", "protocol_mismatch", "not_ready"}
"""Refusals that come before anybody has looked at the deadlines."""

OPERATORS = {"drain", "set_policy", "forget", "release_driver"}
"""Verbs all of whose refusals do."""

OWN, OTHER, SCRIPTS = "own", "other", ""
"""Ways to the verbs: the library of this version, another one beside it, scripts."""

READ: dict[str, Callable[[Pipeline, str], object]] = {
    "hash": lambda pipe, key: pipe.hgetall(key),
    "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
    "set": lambda pipe, key: pipe.smembers(key),
    "string": lambda pipe, key: pipe.get(key),
    "list": lambda pipe, key: pipe.lrange(key, 0, -1),
    "stream": lambda pipe, key: pipe.xlen(key),
}
"""Command that reads a key, by its type."""

names = (f"t{n}" for n in itertools.count())


@cache
def _skewed(verb: str, *, shebang: bool) -> Script:
    return assemble(verb, shebang=shebang, instead={"time": SKEWED_TIME})


@cache
def _skewed_library(*, own: bool) -> Library:
    return functions.assemble(own=own, instead={"time": SKEWED_TIME})


RARE = {"note": "", "uses": "", "team": "", "preemptible": "", "yields": "", "after": ""}
"""Arguments of acquire that few calls have."""


@dataclass
class Pool:
    """Verbs by their names; each reply a list: tag, now, next due, epoch, more, then the rest.

    Attributes:
        checked: compare what each reply says of the deadlines with them; for one caller alone.
        shebang: False for fakeredis, which does not know the `#!lua` line.
        functions: call the verbs as functions, not as scripts.
    """

    redis: redis.Redis
    keys: Keys = field(default_factory=lambda: Keys(f"{next(names)}-{uuid4().hex[:8]}"))
    checked: bool = False
    shebang: bool = True
    functions: bool = False

    def __post_init__(self) -> None:
        self.scripts = {v: _skewed(v, shebang=self.shebang) for v in CALLED}
        self.library, self.other = _skewed_library(own=True), _skewed_library(own=False)
        self.way = OWN if self.functions else SCRIPTS
        if self.functions:
            self.load()
        there: Any = self.redis.script_exists(*(script.sha for script in self.scripts.values()))
        for script, known in zip(self.scripts.values(), there, strict=True):
            if not known:
                self.redis.script_load(script.source)

    def load(self, *, anew: bool = False) -> None:
        """Put the library on the server; `anew`: as another server has it, of no pool yet."""
        for library in (self.library, self.other):
            try:
                self.redis.function_load(library.source, replace=anew)
            except ResponseError as error:
                if not functions.is_there(error):
                    raise

    def run(self, verb: str, *args: Any) -> list[Any]:
        reply: Any = self.redis.execute_command(*self.command(verb), *args)  # type: ignore[no-untyped-call] # in redis-py
        assert isinstance(reply, list)
        early = reply[0] == "REFUSED" and (verb in OPERATORS or reply[5] in UNREADY)
        if self.checked and not early:
            self._check_next_deadline(f"{verb} {args}: next_deadline_ms of {reply}", reply)
        return reply

    def _check_next_deadline(self, what: str, reply: list[Any]) -> None:
        """Nothing is due before; and of what may be over now somebody has looked at it."""
        said, first = reply[2], self.first_deadline()
        assert said == first or (said != "" and (first == "" or said < first)), what
        looked = said == "" or said >= reply[1] or reply[4] == 1
        assert looked or int(self.hash("pool")["window_until_ms"]) > reply[1], what

    def command(self, verb: str) -> tuple[Any, ...]:
        """A call of the verb, but for its arguments."""
        if self.way == SCRIPTS:
            return ("EVALSHA", self.scripts[verb].sha, 1, self.keys.base)
        library = self.library if self.way == OWN else self.other
        return ("FCALL", library.function(verb), 1, self.keys.base)

    def by_hand(self) -> None:
        """Say that a hand has edited the pool: what libraries keep of it is void."""
        if self.redis.exists(self.keys.pool):
            self.redis.hincrby(self.keys.pool, "sequence", 1)

    def twin(self, client: redis.Redis) -> Pool:
        """The same pool through another connection."""
        return Pool(client, self.keys, shebang=self.shebang, functions=self.functions)

    def freeze(self) -> None:
        """Stop the pool's clock: from now on only `skew` moves it."""
        seconds, micros = self.redis.time()
        self.redis.set(f"{self.keys.base}:test_frozen_us", seconds * 1_000_000 + micros)

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
        by: tuple[str, str] | None = None,
        words: tuple[str, str] | None = None,
    ) -> list[Any]:
        """Report devices.

        `by`: the reporter, and one that is over; `words`: the host's trouble, and its warning.
        """
        flat: list[Any] = []
        for uuid, fields in devices:
            flat += [uuid, len(fields)]
            for pair in fields.items():
                flat += pair
        flat += () if by is None and words is None else ("", *(by or ("", "")), *(words or ()))
        return self.run("report", 1, host, deadline_ms, sampled_ms, epoch, safe_mode, "test", *flat)

    def acquire(self, token: str | None = None, agent: str = "agent", **ask: Any) -> list[Any]:
        get = {
            "memory_mb": 900, "devices": 1, "exclusive": 0, "ttl_ms": 30000, "max_hold_ms": 0,
            "priority": 0, "host": "*", "model": "*", "placement": "spread",
            "on_unavailable": "refuse", "client": "client", "pid": "1:1", "owner": "",
            "wait_ms": 0,
        }  # fmt: skip
        rare = RARE if RARE.keys() & ask.keys() else {}
        get |= rare | ask
        return self.run("acquire", 1, token or str(uuid4()), agent, *get.values())

    def renew(self, token: str, fence: str = "", ttl_ms: str | int = "") -> list[Any]:
        return self.run("renew", 1, token, fence, ttl_ms)

    def renew_many(self, *leases: tuple[str, Any, Any], owner: str = "") -> list[Any]:
        return self.run("renew_many", 1, owner, *(part for each in leases for part in each))

    def release(self, token: str, plant: int = 1) -> list[Any]:
        return self.run("release", 1, token, plant)

    def reap(self) -> list[Any]:
        return self.run("reap", 1)

    def reap_all(self) -> int:
        """Reap until nothing is over; how many calls that took."""
        for calls in itertools.count(1):
            if self.reap()[4] == 0:
                return calls
        raise AssertionError

    def policy(self, **fields: int) -> None:
        """Set fields of the pool as one would who has only redis-cli, without any check."""
        self.redis.hset(self.keys.pool, mapping=fields)
        self.by_hand()

    def drain(self, name: str, what: str = "device", drained: int = 1) -> list[Any]:
        return self.run("drain", 1, what, name, drained, "operator", "why")

    def forget(self, name: str, what: str = "device") -> list[Any]:
        return self.run("forget", 1, what, name, "operator", "why")

    def release_driver(self, host: str, for_ms: int = 60_000) -> list[Any]:
        return self.run("release_driver", 1, host, for_ms, "operator", "why")

    def revoke(self, token: str, force: int = 0) -> list[Any]:
        return self.run("revoke", 1, token, force, "operator", "why")

    def set_teams(self, version: int | str = "", **lines: str) -> list[Any]:
        """Set the policies of all teams: name -> line of words."""
        flat = [part for pair in lines.items() for part in pair]
        return self.run("set_teams", 1, "operator", version, *flat)

    def ask(self, token: str, by: str) -> list[Any]:
        return self.run("ask", 1, token, by)

    def extend(self, token: str, hold_ms: int, by: str = "operator") -> list[Any]:
        return self.run("extend", 1, token, hold_ms, by)

    def set_policy(self, **fields: Any) -> list[Any]:
        flat = [part for pair in fields.items() for part in pair]
        return self.run("set_policy", 1, "operator", *flat)

    def first_deadline(self) -> int | str:
        """Return the first deadline, or ''."""
        first: Any = self.redis.zrange(self.keys.deadlines, 0, 0, withscores=True)
        return int(first[0][1]) if first else ""

    def number(self, uuid: str, name: str) -> int:
        """A number field of a device."""
        return int(self.hash(f"device:{uuid}")[name])

    def free(self, selector: str = "*") -> dict[str, int]:
        """Return the devices that may be shared now, with the free memory of each."""
        row: Any = self.redis.zrange(f"{self.keys.base}:free:{selector}", 0, -1, withscores=True)
        return {uuid: int(mb) for uuid, mb in row}

    def events(self) -> list[str]:
        """The names of all events, oldest first."""
        found: Any = self.redis.xrange(self.keys.events)
        return [entry["event"] for _, entry in found]

    def stats(self) -> dict[str, int]:
        """The counters."""
        row = {name: int(value) for name, value in self.hash("stats").items()}
        pool = self.hash("pool")
        return row | {name: int(pool[name]) for name in ("granted", "released") if name in pool}

    def ended(self, token: str) -> str | None:
        """Give how a lease ended, by its tombstone."""
        shard: Any = self.redis.get(self.keys.done(token))
        found = tombstones.ended(shard, token)
        return found.outcome if found else None

    def forget_end(self, token: str) -> None:
        """Take a tombstone away, as time does."""
        shard: Any = self.redis.get(self.keys.done(token))
        parts = [shard[at : at + tombstones.SIZE] for at in range(0, len(shard), tombstones.SIZE)]
        left = [part for part in parts if not tombstones.ended(part, token)]
        self.redis.set(self.keys.done(token), "".join(left), keepttl=True)
        if not left:
            self.redis.delete(self.keys.done(token))

    def look(self, steps: Any) -> Any:
        """The result of one of `agent_sdk.state.snapshot`'s readings, by the pool's own clock."""
        try:
            read = next(steps)
            while True:
                pipe = self.redis.pipeline(transaction=False)
                for command in read.commands:
                    pipe.execute_command(*command)
                frozen = self._frozen_time()
                found = [
                    frozen if frozen and command == ("TIME",) else answer
                    for command, answer in zip(read.commands, pipe.execute(), strict=True)
                ]
                read = steps.send(Answer(found, 0.0))
        except StopIteration as done:
            return done.value

    def _frozen_time(self) -> tuple[int, int] | None:
        """The answer of TIME in a pool whose clock is stopped; None: it goes on."""
        base = self.keys.base
        frozen_us, skew_ms = self.redis.mget(f"{base}:test_frozen_us", f"{base}:test_skew_ms")
        return frozen_us and divmod(int(frozen_us) + int(skew_ms or 0) * 1000, 1_000_000)

    def hash(self, name: str) -> dict[str, str]:
        row: Any = self.redis.hgetall(f"{self.keys.base}:{name}")
        return dict(row)

    def agents(self) -> dict[str, str]:
        """Sums of the agents alone: API keys and teams have a blank in their names."""
        return {name: n for name, n in self.hash("agents").items() if " " not in name}

    def state(self) -> dict[str, Any]:
        """The whole key space of the pool, to compare before and after."""
        names = sorted(self.redis.scan_iter(f"{self.keys.base}*", count=1000))
        types = self._all(names, lambda pipe, key: pipe.type(key))
        kinds = {key: kind for key, kind in types.items() if kind in READ}
        return self._all(kinds, lambda pipe, key: READ[kinds[key]](pipe, key))

    def _all(self, names: Iterable[str], ask: Callable[[Pipeline, str], object]) -> dict[str, Any]:
        """Answers to one command of each key, read in one exchange."""
        pipe = self.redis.pipeline(transaction=False)
        for key in names:
            ask(pipe, key)
        return dict(zip(names, pipe.execute(), strict=True))

    def stored(self) -> dict[str, Any]:
        """`state` without what the test itself put there, and what each call moves."""
        found = {key: value for key, value in self.state().items() if ":test_" not in key}
        if isinstance(pool := found.get(self.keys.pool), dict):
            pool.pop("sequence", None)
        return found


def device(uuid: str, total_mb: int = 1000, **more: Any) -> tuple[str, dict[str, Any]]:
    """A device as a reporter says it; simulated, so nothing cools unless simulated=0."""
    fields = {
        "index": 0, "name": "Test GPU", "model": "m1", "total_mb": total_mb, "system_mb": 0,
        "used_mb": 0, "state": "ok", "simulated": 1,
    }  # fmt: skip
    return uuid, fields | more


def token(name: str | int) -> str:
    """A token that is easy to read in a failure."""
    return f"{name}".rjust(16, "-")


@dataclass(frozen=True)
class Granted:
    """A reply to acquire that must be a grant, by names."""

    now_ms: int
    fence: int
    expires_at_ms: int
    remaining_ms: int
    reason: str
    devices: tuple[tuple[str, int], ...]


def granted(reply: list[Any]) -> Granted:
    """The grant that a reply is; a failure when it is none."""
    assert reply[0] == "GRANTED", reply
    fence, expires_at_ms, remaining_ms, reason, *flat = reply[5:]
    assert len(flat) % DEVICE_WORDS == 0, reply
    devices = tuple((flat[i], int(flat[i + 1])) for i in range(0, len(flat), DEVICE_WORDS))
    return Granted(reply[1], int(fence), expires_at_ms, remaining_ms, reason, devices)


def uuids(reply: list[Any]) -> list[str]:
    """The devices of a grant."""
    return [uuid for uuid, _ in granted(reply).devices]


def said(reply: list[Any]) -> list[Any]:
    """Return a reply without its frame: the tag and what the tag carries."""
    return [reply[0], *reply[5:]]
