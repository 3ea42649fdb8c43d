"""A long life from one seed; at a failure the seed, and the fewest steps that lead there."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_sdk.keys import Keys
from tests.model.pair import Pair
from tests.model.walk import Walk
from tests.model.walks.scenery import SHAPES
from tests.model.world import Life
from tests.pools import OWN, SCRIPTS, Pool
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.model.world import Step

CHAPTER = 2000
"""Steps after which life begins anew, so that a failure is never far from its beginning."""

AUDIT_EVERY = 50
"""After so many steps every key of each pool is looked at."""

SHRINK_S = 40

PATIENCE_S = 60
"""Seconds that a reply may take on a busy machine; a repeated call would be a violation."""


@dataclass
class Failure(Exception):
    """A failure, and the steps that lead there, the last one included."""

    why: str
    steps: list[Step]
    origin: str = ""

    def __str__(self) -> str:
        lines = "\n".join(f"    {step}," for step in self.steps)
        return f"{self.origin}: {self.why}\nafter {len(self.steps)} steps:\n[\n{lines}\n]"

    @property
    def kind(self) -> str:
        """Return the part that two failures have in common when they are the same."""
        return self.why.partition(":")[0]


@dataclass
class World:
    """A server with as many pools as there are shapes; `pages`, `often`: of `planted.Bug`."""

    pools: list[Pool]
    pages: int = 0
    often: str = ""

    @classmethod
    @contextmanager
    def on_a_server(cls, *, functions: bool = False) -> Iterator[World]:
        """A server of its own for the length of a block; `functions`: the verbs are functions."""
        once: dict[str, Any] = {"socket_timeout": PATIENCE_S, "retry": Retry(NoBackoff(), 0)}
        with running() as server, server.connect(**once) as client:
            numbers = range(len(SHAPES))
            yield cls([Pool(client, Keys(f"m{n}"), functions=functions) for n in numbers])

    def begin(self) -> list[Life]:
        """Empty pools, at the beginning of time."""
        self.pools[0].redis.flushall()
        if self.pools[0].functions:
            self.pools[0].load(anew=True)
        for pool in self.pools:
            pool.way = OWN if pool.functions else SCRIPTS
        return [Life(Pair(pool, self.pages)) for pool in self.pools]

    def live(self, steps: Sequence[Step], audit_every: int = AUDIT_EVERY) -> list[Life]:
        """Do these steps from the beginning. Raises Failure."""
        lives = self.begin()
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            self.do(lives, step, steps[: number + 1], audit=last or number % audit_every == 0)
        return lives

    def do(self, lives: list[Life], step: Step, trail: Sequence[Step], *, audit: bool) -> None:
        """One step, looked at from all sides when `audit`."""
        try:
            lives[step[0]].step(step[1], step[2])
            if audit:
                for life in lives:
                    life.pair.audit()
        except (AssertionError, LookupError, redis.RedisError, ValueError) as error:
            raise Failure(f"{error}" or repr(error), list(trail)) from error

    def walk(self, seed: str, steps: int, until: float = 0.0) -> int:
        """Live on at random; how many steps that were. `until`: on time.monotonic, 0 = no limit."""
        for done in range(0, steps, CHAPTER):
            walk = Walk(random.Random(f"{seed}/{done // CHAPTER}"), self.often)
            trail: list[Step] = []
            lives = self.begin()
            for number in range(min(CHAPTER, steps - done)):
                if until and time.monotonic() > until:
                    return done + number
                trail.append(walk.next())
                try:
                    self.do(lives, trail[-1], trail, audit=number % AUDIT_EVERY == AUDIT_EVERY - 1)
                except Failure as failure:
                    failure.origin = f"seed {seed}, step {done + number}"
                    raise
        return steps

    def shrink(self, failure: Failure, within_s: float = SHRINK_S) -> Failure:
        """The same failure with fewer steps: leave parts out while it still happens."""
        until, best, size = time.monotonic() + within_s, failure, len(failure.steps) // 2
        while size and time.monotonic() < until:
            start, found = 0, False
            while start < len(best.steps) and time.monotonic() < until:
                fewer = best.steps[:start] + best.steps[start + size :]
                again = self.fails(fewer)
                if again and again.kind == failure.kind and len(again.steps) < len(best.steps):
                    best, found = again, True
                else:
                    start += size
            size = size if found and size == 1 else size // 2
        best.origin = failure.origin
        return best

    def fails(self, steps: Sequence[Step]) -> Failure | None:
        """Does this end badly?"""
        try:
            self.live(steps, audit_every=10)
        except Failure as failure:
            return failure
        return None
