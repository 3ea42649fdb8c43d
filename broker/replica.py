"""What the routes work with: the parts of one running replica."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from anyio import Event
from fastapi import Depends, Request

from agent_sdk.errors import LeaseError
from broker import __version__
from broker.live.single_flight import SingleFlight

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient
    from broker.api_keys import Keyring, Principal
    from broker.devices import Source
    from broker.live.feed import Feed
    from broker.live.view import View
    from broker.maintenance.reaper import Ticker
    from broker.metrics import Metrics
    from broker.reporter import Reporter
    from broker.settings import Settings


log = logging.getLogger(__name__)

RETRY_S = 0.1


@dataclass(slots=True)
class Broker:
    """One replica.

    Attributes:
        replica: this process among the replicas.
        stopping: set when this process is told to stop, for the followers of streams.
        readiness: the readiness check that simultaneous requests share.
        mode_decided: what our environment says of SAFE_MODE is in the pool's policy.
    """

    settings: Settings
    source: Source
    client: AsyncLeaseClient
    reporter: Reporter
    ticker: Ticker
    metrics: Metrics
    replica: str
    keys: Keyring
    feed: Feed
    view: View
    mode_decided: bool = False
    stopping: Event = field(default_factory=Event)
    readiness: SingleFlight[str | None] = field(default_factory=SingleFlight)

    def safe_mode_of(self, pool_safe_mode: bool | None) -> bool:
        """SAFE_MODE in effect at this door; None: the pool cannot be asked."""
        if self.settings.safe_mode:
            return True
        if pool_safe_mode is None:
            return self.settings.safe_mode is None
        return pool_safe_mode

    @property
    def safe_mode(self) -> bool:
        """The same by what the ticker saw last."""
        seen = self.ticker.pool
        return self.safe_mode_of(seen.safe_mode if seen and not self.ticker.problem else None)

    def serves(self, who: Principal) -> bool:
        """Return whether one who follows something may go on."""
        return self.keys.admits(who) and not self.stopping.is_set()

    async def dismiss(self) -> None:
        """When we stop, wake those who follow, so that they end in good order."""
        await self.stopping.wait()
        self.feed.wake()
        self.view.shown.wake()

    @property
    def about(self) -> dict[str, Any]:
        """This replica as it says itself; `problem` is None while the store serves it."""
        return {
            "replica": self.replica,
            "version": __version__,
            "host": self.settings.sdk.hostname,
            "safe_mode": self.safe_mode,
            "problem": self.ticker.problem or self.feed.problem,
        }

    async def decide_safe_mode(self) -> None:
        """Write SAFE_MODE into the pool's policy if our environment says it; log what is in effect.

        So agents direct on Redis obey it too; the replica that started last decides for the pool.
        """
        wanted = self.settings.safe_mode
        while True:
            with suppress(LeaseError):  # the ticker says what is wrong with the store
                pool = await self.client.pool()
                if pool.ready:
                    if wanted is not None:
                        await self.client.set_policy(safe_mode=wanted)
                    self.mode_decided = True
                    self._log_mode(self.safe_mode_of(pool.safe_mode if wanted is None else wanted))
                    return
            await asyncio.sleep(RETRY_S)

    def _log_mode(self, safe: bool) -> None:
        why = "the pool's policy" if self.settings.safe_mode is None else "the environment"
        way_out = "; gpu-broker policy set safe_mode=false switches it off"
        if self.settings.safe_mode:
            way_out = "; start with SAFE_MODE=false to switch it off"
        log.info("SAFE_MODE is %s by %s%s", "ON" if safe else "off", why, way_out if safe else "")

    @property
    def local_host(self) -> str:
        """Where a request that names no host looks: here if we report devices, else anywhere."""
        sample = self.reporter.sample
        return self.settings.sdk.hostname if sample and sample.devices else "any"


def broker_of(request: Request) -> Broker:
    """The replica that answers; for a route that is asked so often that a dependency costs."""
    broker: Broker = request.app.state.broker
    return broker


async def _of(request: Request) -> Broker:  # a plain function would take a thread per request
    return broker_of(request)


At = Annotated[Broker, Depends(_of)]
"""A route's parameter: the replica that answers."""
