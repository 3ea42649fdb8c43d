"""Parts of one running replica, for the routes."""

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
from broker.live.recent import Recent
from broker.live.single_flight import SingleFlight

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient
    from agent_sdk.state.lists import LeaseEntry
    from agent_sdk.state.snapshot import PoolStatus
    from broker.api_keys import Keyring, Principal
    from broker.devices import Source
    from broker.hooks.registry import Registry
    from broker.live.feed import Feed
    from broker.live.view import View
    from broker.maintenance.reaper import Ticker
    from broker.metrics import Metrics
    from broker.reporter import Reporter
    from broker.settings import Settings
    from broker.worker import Worker


log = logging.getLogger(__name__)

RETRY_S = 0.1


@dataclass(slots=True)
class Broker:
    """Running replica.

    Attributes:
        replica: this process's name among the replicas.
        stopping: set when this process is told to stop, for the followers of streams.
        readiness: the readiness check that simultaneous requests share.
        listed: the last list of leases that was asked for in pages.
        worker: this process's part among several.
        hooks: the pool's webhooks.
        mode_decided: our environment's SAFE_MODE has reached the pool's policy.
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
    worker: Worker
    hooks: Registry
    mode_decided: bool = False
    listed: Recent[tuple[list[LeaseEntry], ...]] = field(default_factory=Recent)
    stopping: Event = field(default_factory=Event)
    readiness: SingleFlight[str | None] = field(default_factory=SingleFlight)

    def safe_mode_of(self, pool_safe_mode: bool | None) -> bool:
        """Return the SAFE_MODE in effect at this broker; None: the pool cannot be asked."""
        if self.settings.safe_mode:
            return True
        if pool_safe_mode is None:
            return self.settings.safe_mode is None
        return pool_safe_mode

    @property
    def safe_mode(self) -> bool:
        """SAFE_MODE in effect by the ticker's last reading."""
        seen = self.ticker.pool
        return self.safe_mode_of(seen.safe_mode if seen and not self.ticker.problem else None)

    def serves(self, who: Principal) -> bool:
        """Return whether a principal may go on following a stream."""
        return self.keys.admits(who) and not self.stopping.is_set()

    async def dismiss(self) -> None:
        """Wake the followers when we stop, so that they end in good order."""
        await self.stopping.wait()
        self.feed.wake()
        self.view.shown.wake()

    @property
    def about(self) -> dict[str, Any]:
        """Row of this replica about itself; `problem` is None while the store serves it."""
        return {
            "replica": self.replica,
            "version": __version__,
            "host": self.settings.sdk.hostname,
            "safe_mode": self.safe_mode,
            "problem": self.ticker.problem or self.feed.problem,
        }

    async def decide_safe_mode(self) -> None:
        """Write our environment's SAFE_MODE, if any, into the pool's policy; log the outcome.

        So agents that call Redis directly obey it too; the last replica to start decides. Of its
        workers the first does, and the others wait for it; a replaced worker decides nothing.
        """
        wanted = self.settings.safe_mode
        while True:
            with suppress(LeaseError):  # the ticker logs the store's problems
                pool = await self.client.pool()
                if pool.ready and (self.worker.decides or self._is_decided(pool)):
                    if wanted is not None and self.worker.decides:
                        await self.client.set_policy(safe_mode=wanted)
                    self.mode_decided = True
                    self._log_mode(self.safe_mode_of(pool.safe_mode if wanted is None else wanted))
                    return
            await asyncio.sleep(RETRY_S)

    def _is_decided(self, pool: PoolStatus) -> bool:
        """Tell whether the first worker has written our SAFE_MODE, which may have changed since."""
        place, wanted = self.worker.place, self.settings.safe_mode
        return wanted is None or pool.safe_mode == wanted or (place is not None and place.anew)

    def _log_mode(self, safe: bool) -> None:
        why = "the pool's policy" if self.settings.safe_mode is None else "the environment"
        way_out = "; gpu-broker policy set safe_mode=false switches it off"
        if self.settings.safe_mode:
            way_out = "; start with SAFE_MODE=false to switch it off"
        log.info("SAFE_MODE is %s by %s%s", "ON" if safe else "off", why, way_out if safe else "")

    @property
    def local_host(self) -> str:
        """Host of a request that names none: ours if we report devices, else any."""
        sample = self.reporter.sample
        return self.settings.sdk.hostname if sample and sample.devices else "any"


def broker_of(request: Request) -> Broker:
    """Return the replica that answers; cheaper than a dependency on a frequent route."""
    broker: Broker = request.app.state.broker
    return broker


async def _of(request: Request) -> Broker:  # a plain function would take a thread per request
    return broker_of(request)


At = Annotated[Broker, Depends(_of)]
"""Parameter of a route: the replica that answers."""
