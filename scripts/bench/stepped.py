"""Jobs of teams in a pool whose clock a program moves: the real verbs, without the hours.

A job waits with `acquire`, claims what its inbox hints at, holds for as long as it runs, and gives
back with `release`. Each 5 s of the pool's time the host reports and the heads of all queues poll,
as clients do. One thing is not as in a program: waiters behind others need no heartbeat here, so
that a thousand of them cost nothing.
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.pools import Pool, device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import redis

TICK_MS = 8000
DAY_MS = 24 * 3600 * 1000
WAIT_MS = 6 * DAY_MS
CLIENT = "bench"


@dataclass(slots=True)
class Job:
    """Request, time of use, and fate of a job."""

    token: str
    team: str
    memory_mb: int
    run_ms: int
    devices: int = 1
    whole: bool = False
    priority: int = 0
    evictions: int = 0
    after: str = ""
    asked_ms: int = 0
    granted_ms: int = -1
    held_mb: int = 0

    def acquire(self) -> tuple[Any, ...]:
        """Arguments of its acquire, which are those of each poll."""
        return (
            1, self.token, self.token, self.memory_mb, self.devices, int(self.whole), 0, 0,
            self.priority, "*", "*", "spread", "refuse", CLIENT, "1:1", "", WAIT_MS, "", "",
            self.team, "", "", self.after,
        )  # fmt: skip


@dataclass
class Held:
    """MiB-milliseconds by team while a condition holds."""

    sums: dict[str, int] = field(default_factory=dict)
    ms: int = 0

    @property
    def shares(self) -> dict[str, float]:
        """Share that each team had of all that was held."""
        total = sum(self.sums.values()) or 1
        return {team: mb / total for team, mb in self.sums.items()}


class Stepped:
    """A pool of one host, and the jobs that wait in it and hold.

    Attributes:
        contended: MiB-ms by team while every team has a waiter.
        gaps: of each team the longest time without a grant, in ms, while it had waiters.
    """

    def __init__(self, redis: redis.Redis, sizes_mb: Sequence[int], teams: Iterable[str]) -> None:
        self.pool = Pool(redis, functions=True)
        self.pool.freeze()
        self.keys = self.pool.keys
        gpus = tuple(device(f"gpu-{n}", mb, index=n) for n, mb in enumerate(sizes_mb))
        self.pool.report(gpus, deadline_ms=DAY_MS)
        self._began_ms = int(self.pool.hash("pool")["last_ms"])
        self.capacity_mb, self.now = sum(sizes_mb), 0
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, Job] = {}
        self.polling: set[str] = set()
        self.counts, self.held = dict.fromkeys(teams, 0), dict.fromkeys(teams, 0)
        self.contended, self.gaps = Held(dict.fromkeys(teams, 0)), dict.fromkeys(teams, 0)
        self.quiet_since = dict.fromkeys(teams, 0)
        self.grants, self.used_mb_ms, self.busy_ms = 0, 0, 0
        self.on_grant: Callable[[Job], None] = lambda _: None
        self.on_end: Callable[[Job], None] = lambda _: None
        self.on_tick: Callable[[], None] = lambda: None
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order, self._ticked, self._moved = 0, 0, 0
        self._hints: list[str] = []
        base = self.keys.base
        self._heads = {f"{base}:capped:team {team}" for team in teams}

    @property
    def used(self) -> float:
        """The part of the capacity that was held while something waited."""
        return self.used_mb_ms / max(1, self.busy_ms * self.capacity_mb)

    def at(self, ms: int, act: Callable[[], None]) -> None:
        """Do something at that moment of the pool's time."""
        self._order += 1
        heapq.heappush(self._events, (ms, self._order, act))

    def run(self, until_ms: int | None = None) -> None:
        """Go on until nothing is to come, or until that moment."""
        while self._events or self.waiting or self.running:
            next_ms = self._events[0][0] if self._events else self._ticked + TICK_MS
            if until_ms is not None and min(next_ms, self._ticked + TICK_MS) > until_ms:
                return
            if self._ticked + TICK_MS <= next_ms:
                self._ticked += TICK_MS
                self._advance(self._ticked)
                self._tick()
            else:
                self._advance(next_ms)
                heapq.heappop(self._events)[2]()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs ask, in their order."""
        for job in jobs:
            job.asked_ms = self.now
        self._answered(jobs, self.call(*(("acquire", *job.acquire()) for job in jobs)))
        behind = [job.token for job in jobs if job.token in self.waiting]
        if behind:  # no heartbeat is due from a waiter that is behind others
            pipe = self.pool.redis.pipeline(transaction=False)
            far_ms = self._began_ms + self.now + 300 * DAY_MS
            pipe.zadd(self.keys.deadlines, dict.fromkeys(behind, far_ms), xx=True)
            pipe.hincrby(self.keys.pool, "sequence", 1)
            pipe.zrange(f"{self.keys.base}:queues:*/*", 0, -1)
            ids: Any = pipe.execute()[-1]
            self._heads |= {f"{self.keys.base}:queue:{queue_id}" for queue_id in ids}
        self._claim()

    def end(self, job: Job) -> None:
        """Give back what a job has; the next ones get it."""
        if job.token in self.running:
            self._forget(job)
            self.call(("release", 1, job.token, 1))
            self._claim()
            self.on_end(job)

    def lost(self, job: Job) -> None:
        """Note that a lease has ended otherwise."""
        self._forget(job)

    def _forget(self, job: Job) -> None:
        del self.running[job.token]
        self.held[job.team] -= job.held_mb

    def _tick(self) -> None:
        """Poll as the heads of queues do; report while none waits."""
        if self.waiting:
            pipe = self.pool.redis.pipeline(transaction=False)
            for key in sorted(self._heads):
                pipe.zrange(key, 0, 0)
            self.polling.update(*pipe.execute())
            self.polling &= self.waiting.keys()
            polls = [self.waiting[token] for token in sorted(self.polling)]
            self._answered(polls, self.call(*(("acquire", *job.acquire()) for job in polls)))
        else:
            self.call(("report", 1, "h1", DAY_MS, 0, "", 0, "test"))
        self.on_tick()
        self._claim()

    def _advance(self, ms: int) -> None:
        """Move the clock, and count what was held until then."""
        for_ms = ms - self.now
        if all(self.counts.values()):
            self.contended.ms += for_ms
            for team, mb in self.held.items():
                self.contended.sums[team] += mb * for_ms
        if self.waiting:
            self.busy_ms += for_ms
            self.used_mb_ms += sum(self.held.values()) * for_ms
        self.now = ms

    def call(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Call verbs in one go at the pool's moment, and take the hints that come of it."""
        pipe = self.pool.redis.pipeline(transaction=False)
        pipe.incrby(f"{self.keys.base}:test_skew_ms", self.now - self._moved)
        self._moved = self.now
        for verb, *args in calls:
            pipe.execute_command(*self.pool.command(verb), *args)
        pipe.lpop(f"{self.keys.base}:inbox:{CLIENT}", 100)
        _, *replies, hints = pipe.execute()
        self._hints += hints or ()
        if any(reply[4] == 1 for reply in replies):
            self.pool.reap_all()
            self._hints += self.pool.redis.lpop(f"{self.keys.base}:inbox:{CLIENT}", 100) or ()
        return list(replies)

    def _answered(self, jobs: Sequence[Job], replies: Sequence[Any]) -> None:
        for job, reply in zip(jobs, replies, strict=True):
            waits = job.token in self.waiting
            if reply[0] == "WAITING":
                if not waits:
                    self._waits(job)
            elif reply[0] == "GRANTED":
                if waits:
                    del self.waiting[job.token]
                    self.counts[job.team] -= 1
                self._granted(job, sum(int(mb) for mb in reply[10::8]))
            elif reply[0] != "AGAIN" or not waits:
                message = f"{job}: {reply}"
                raise AssertionError(message)

    def _waits(self, job: Job) -> None:
        if not self.counts[job.team]:
            self.quiet_since[job.team] = self.now
        self.waiting[job.token] = job
        self.counts[job.team] += 1

    def _granted(self, job: Job, held_mb: int) -> None:
        team = job.team
        if job.asked_ms < self.now or self.counts[team]:
            self.gaps[team] = max(self.gaps[team], self.now - self.quiet_since[team])
        self.quiet_since[team] = self.now
        job.granted_ms, job.held_mb = self.now, held_mb
        self.running[job.token] = job
        self.held[team] += held_mb
        self.grants += 1
        self.at(self.now + job.run_ms, lambda: self.end(job))
        self.on_grant(job)

    def _claim(self) -> None:
        """Claim what was offered, as the inbox says."""
        while self._hints:
            hints, self._hints = dict.fromkeys(self._hints), []
            jobs = [self.waiting[token] for token in hints if token in self.waiting]
            self._answered(jobs, self.call(*(("acquire", *job.acquire()) for job in jobs)))
