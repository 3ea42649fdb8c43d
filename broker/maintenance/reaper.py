"""Ticker: it reaps at the deadlines, and watches the store.

Every replica has a ticker and none leads: a reap without work costs a few microseconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from agent_sdk.errors import LeaseError
from broker.maintenance.function_loader import Loading
from broker.maintenance.store_check import problem_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.state.snapshot import PoolStatus

log = logging.getLogger(__name__)

LONGEST_S, SOON_S, SHORTEST_S = 1.0, 0.1, 0.01


class Ticker:
    """Loop that reaps until cancelled.

    Args:
        client: the pool's client.
        ticked: called in the event loop after each round, with the problem.
        looked: called with the seconds of a reap's round trip, None = no answer; and how late it
            was for what was over.
        leads: tells whether this process reaps; else it watches the store alone.

    Attributes:
        problem: the store's problem, in one sentence; None: it can serve.
        pool: the pool's policy as last read; None until then.
    """

    def __init__(
        self,
        client: AsyncLeaseClient,
        ticked: Callable[[str | None], None],
        looked: Callable[[float | None, float], None],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._loading = Loading(client)
        self._ticked = ticked
        self._looked = looked
        self._leads = leads
        self._due_ms: int | None = None
        self._seen_ms = 0
        self._checked = False
        self.problem: str | None = "the store has not been asked yet"
        self.pool: PoolStatus | None = None

    async def run(self) -> None:
        """Reap, then sleep until the next deadline, at most a second; repeat."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            pause_s = await self.tick()
            self._ticked(self.problem)

    async def tick(self) -> float:
        """Reap once, if it is ours to do; return the seconds until the next time."""
        problem = None if self._checked else await problem_of(self._client.redis)
        began = time.perf_counter()
        try:
            if not self._leads():
                return await self._watch(problem)
            moment = await self._client.reap(self._seen_ms)
            self._seen_ms = moment.now_ms
            took_s = time.perf_counter() - began
            self.pool = await self._client.pool()
        except LeaseError as error:
            self._looked(None, 0.0)
            self._checked = False  # another server may answer next
            if error.code == "not_ready":  # our own reporter is about to change that
                self.problem = problem or str(error)
                return SOON_S
            self._say(problem or str(error))
            return LONGEST_S
        late_ms = 0 if self._due_ms is None else max(0, moment.now_ms - self._due_ms)
        self._due_ms = moment.next_deadline_ms
        self._looked(took_s, late_ms / 1000)
        await self._loading.load_missing()
        self._checked = problem is None
        self._say(problem)
        if moment.more:
            return 0.0
        if moment.next_deadline_ms is None:
            return LONGEST_S
        return min(
            LONGEST_S, max(SHORTEST_S, (moment.next_deadline_ms - moment.now_ms) / 1000 + 0.002)
        )

    async def _watch(self, problem: str | None) -> float:
        """Read the pool, and leave the reaping to the worker that leads."""
        self.pool = await self._client.pool()
        self._checked = problem is None
        self._say(problem)
        return LONGEST_S if self.pool.ready else SOON_S

    def _say(self, problem: str | None) -> None:
        if problem != self.problem:
            log.warning("store: %s", problem) if problem else log.info("store: ready")
        self.problem = problem
