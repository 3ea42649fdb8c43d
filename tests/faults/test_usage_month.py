"""A month of three teams: the sums of use are those of the event stream, to the second.

The verbs are the real ones on a server of their own, whose clock is stepped. Holders die without a
word, and the server dies with and without its last writes.
"""

from __future__ import annotations

import heapq
import random
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit import audit
from tests.pools import Pool, device, said
from tests.servers import running
from tests.usage import DAY_MS, Reckoner, history, numbers, sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

LEASES = 10_000
BEGAN = datetime(2027, 2, 10, 9, tzinfo=UTC)
TEAMS = {"nlp": ("ann", "bob"), "vision": ("cy",), "default": ("dee", "eve", "fay")}
GPUS = {f"gpu-{n}": (f"h{n // 4}", (24_000, 80_000)[n // 4]) for n in range(8)}
MINUTE_MS = 60_000


@dataclass(order=True)
class Event:
    """Something that a holder, or fate, does at a moment."""

    at_ms: int
    what: str = field(compare=False)
    token: str = field(compare=False, default="")


@dataclass
class Held:
    """Knowledge of a holder, by which it recovers its lease."""

    fence: str
    claim: tuple[Any, ...]
    dies: bool


class Month:
    """Leases of a month, one call after the other, and a reckoner that follows the stream."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.rng = server, random.Random(seed)
        self.pool = self._pool(None)
        self.reckoner, self.saved, self.last_id = Reckoner(), None, "0"
        self.now_ms = int(BEGAN.timestamp() * 1000)
        self.todo: list[Event] = []
        self.holders: dict[str, Held] = {}
        self.over: set[str] = set()
        self.granted = self.lost = 0

    def _pool(self, before: Pool | None) -> Pool:
        client = self.server.connect()
        return Pool(client, before.keys, functions=True) if before else Pool(client, functions=True)

    def run(self) -> None:
        self._clock()
        self._report()
        at_ms = self.now_ms
        for number in range(LEASES + LEASES // 4):
            at_ms += int(self.rng.expovariate(1 / (30 * DAY_MS / (LEASES * 1.25))))
            heapq.heappush(self.todo, Event(at_ms, "acquire", f"job-{number:012d}"))
        for half in range(62):
            heapq.heappush(self.todo, Event(self.now_ms + half * DAY_MS // 2, "report"))
        for day in range(1, 30, 4):
            at = int(BEGAN.timestamp() * 1000) + day * DAY_MS
            heapq.heappush(self.todo, Event(at, "save"))
            heapq.heappush(self.todo, Event(at + (day % 3) * 20 * MINUTE_MS, "kill"))
        while self.todo:
            event = heapq.heappop(self.todo)
            if event.at_ms > self.now_ms:
                self.now_ms = event.at_ms
                self._clock()
            getattr(self, f"do_{event.what}")(event.token)
            self._follow()
        for _ in range(4):  # what is over, is reaped; what is reaped, is folded
            self.now_ms += 40_000
            self._clock()
            self.pool.reap_all()
        self._follow()

    def _clock(self) -> None:
        self.pool.redis.set(f"{self.pool.keys.base}:test_frozen_us", self.now_ms * 1000)

    def do_report(self, _: str) -> None:
        self._report()

    def _report(self) -> None:
        for host in ("h0", "h1"):
            mine = [(uuid, mb) for uuid, (of, mb) in GPUS.items() if of == host]
            gpus = tuple(device(u, mb, index=n, model=f"m{host}") for n, (u, mb) in enumerate(mine))
            self.pool.report(gpus, host=host, deadline_ms=DAY_MS)

    def _follow(self) -> None:
        found: Any = self.pool.redis.xrange(self.pool.keys.events, f"({self.last_id}", "+")
        if found:
            self.last_id = found[-1][0]
            self.reckoner.follow(self.now_ms, [entry for _, entry in found])

    def do_acquire(self, token: str) -> None:
        rng = self.rng
        team = rng.choice(list(TEAMS))
        agent = rng.choice(TEAMS[team])
        dies, devices = rng.random() < 0.1, 2 if rng.random() < 0.03 else 1
        ask = {"memory_mb": rng.choice((500, 2000, 8000, 20_000)), "devices": devices,
               "exclusive": int(devices > 1), "ttl_ms": 3_600_000 if dies else 0}  # fmt: skip
        reply = self.pool.acquire(token, agent, team=team, **ask)
        if reply[0] != "GRANTED":
            return
        self.granted += 1
        held = ",".join(f"{reply[n]}={reply[n + 1]}" for n in range(9, len(reply), 8))
        request = (
            f"{ask['memory_mb']}|{devices}|{ask['exclusive']}|{ask['ttl_ms']}|0|0|*|*|spread|refuse"
        )
        claim = ("", reply[3], agent, held, request, "client", "1:1", team)
        self.holders[token] = Held(reply[5], claim, dies)
        runs_ms = int(rng.lognormvariate(6.5, 1.6) * 1000)  # 11 min, some for days
        heapq.heappush(self.todo, Event(self.now_ms + runs_ms, "end", token))

    def do_end(self, token: str) -> None:
        if not self.holders.pop(token).dies:
            self.over.add(token)
            self.pool.release(token)

    def do_save(self, _: str) -> None:
        """Save the data of this moment: a server that dies comes back with them."""
        self.pool.redis.save()
        self.saved = deepcopy((self.reckoner, self.last_id))

    def do_kill(self, _: str) -> None:
        """The server comes back as it was saved; holders recover, or say again that it is over."""
        self.server.kill()
        self.server.start()
        self.pool = self._pool(self.pool)
        assert self.saved
        running = set(self.reckoner.running)
        self.reckoner, self.last_id = self.saved
        self.lost += len(running ^ set(self.reckoner.running))
        self._clock()
        self._report()
        self._follow()
        for token, held in self.holders.items():
            if not held.dies and said(self.pool.renew(token, held.fence))[0] == "UNKNOWN":
                fence, (owner, epoch, *rest) = held.fence, held.claim
                answer = self.pool.run("renew", 1, token, fence, "", owner, epoch, *rest)
                assert answer[0] == "RENEWED", (token, answer)
        for token in self.over & set(self.reckoner.running):
            self.pool.release(token)
        self._follow()
        self.now_ms += 60_001
        self._clock()
        self._report()


@pytest.fixture(scope="module")
def month() -> Iterator[Month]:
    """The month, with one server to its end."""
    with running("redis", "--dbfilename", "dump.rdb") as server:
        month = Month(server, 7)
        month.run()
        yield month


def test_sums_of_a_month_are_those_of_its_events(month: Month) -> None:
    """By team, agent and day, to the second; MiB-time and the number of leases likewise."""
    assert month.granted >= LEASES
    assert month.lost > 20, "no data were lost"
    held, mb_ms, leases = _sums_of(month.pool)
    assert not month.reckoner.running
    assert held.keys() == month.reckoner.held.keys()
    for who, ms in month.reckoner.held.items():
        assert abs(held[who] - ms) < 1000, who
        assert abs(mb_ms[who] - month.reckoner.mb_ms[who]) <= 1000 * 200_000, who
    assert leases == dict(month.reckoner.leases)
    assert len({day for *_, day in held}) >= 30


def test_all_sums_of_the_month_agree(month: Month) -> None:
    """By host, in all, and of the finished leases that are remembered; nothing is left over."""
    pool = month.pool
    held, _, leases = _sums_of(pool)
    total = sum(numbers(line)["held_ms"] for line in pool.hash("usage_total").values())
    hosts = [
        row["held_ms"]
        for day in sorted({day for *_, day in held})
        for row in sums(pool, day, ":hosts").values()
    ]
    assert total == sum(held.values()) == sum(hosts)
    assert not pool.redis.exists(pool.keys.ended)
    assert len(history(pool)) <= sum(leases.values())
    assert sum(leases.values()) >= LEASES
    audit(pool.redis, pool.keys)


def _sums_of(pool: Pool) -> tuple[dict[Any, int], dict[Any, int], dict[Any, int]]:
    """Sums of all days: ms held and MiB-ms by team, agent and day, leases by team and agent."""
    held: dict[Any, int] = {}
    mb_ms: dict[Any, int] = {}
    leases: dict[Any, int] = {}
    for key in pool.redis.scan_iter(f"{pool.keys.base}:usage:*", count=1000):
        day = key.removeprefix(f"{pool.keys.base}:usage:")
        if day.endswith(":hosts"):
            continue
        for name, row in sums(pool, day).items():
            team, agent, _ = name.split(" ", 2)
            for into, word, who in ((held, "held_ms", (team, agent, day)),
                                    (mb_ms, "mb_ms", (team, agent, day)),
                                    (leases, "leases", (team, agent))):  # fmt: skip
                into[who] = into.get(who, 0) + row.get(word, 0)
    return held, mb_ms, leases
