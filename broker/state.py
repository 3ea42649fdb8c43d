"""What the routes work with: the parts of one running replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient
    from broker.devices import Source
    from broker.inventory import Reporter
    from broker.metrics import Metrics
    from broker.settings import Settings
    from broker.ticker import Ticker


@dataclass(slots=True)
class Broker:
    """One replica.

    Attributes:
        replica: this process among the replicas.
    """

    settings: Settings
    source: Source
    client: AsyncLeaseClient
    reporter: Reporter
    ticker: Ticker
    metrics: Metrics
    replica: str = field(default_factory=lambda: uuid4().hex[:8])

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

    @property
    def local_host(self) -> str:
        """Where a request that names no host looks: here if we report devices, else anywhere."""
        sample = self.reporter.sample
        return self.settings.sdk.hostname if sample and sample.devices else "any"
