"""Release of the driver by a reporter: a GPU that something has open cannot be reset."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from agent_sdk.clock import local_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk import AsyncLeaseClient
    from agent_sdk.state.holders import Holders
    from broker.attribution.sampler import Sampler

log = logging.getLogger(__name__)

LET_GO: Final = "its reporter has let go of the driver so that GPUs can be reset"
"""Beginning of the reason of each device while an operator wants the driver let go of."""

REST_S: Final = 10.0
"""Seconds between two looks while no GPU of the host can be lent and one waits for its reset."""

WITHHELD: Final = frozenset({"quarantined", "lost", "error", "mig"})
"""States of devices that no request gets."""


class DriverRelease:
    """Times at which a host's reporter does not hold the driver.

    An operator asks for them (`gpu-broker release-driver`). They come by themselves, between two
    looks, while no GPU of the host can be lent, one is in quarantine, and no lease is on them.
    """

    def __init__(self, client: AsyncLeaseClient, host: str, looker: Sampler) -> None:
        self._client = client
        self._host = host
        self._looker = looker
        self._until_ms: int | None = None
        self._rests_until = 0.0
        self._resting = self._safe = False

    async def under_safe_mode(self) -> None:
        """Let go of the driver once: what an open one does by itself asks something of it."""
        if self._looker.holds and not self._safe:
            self._safe = True
            await self._looker.rest()

    async def before_look(self, now_ms: int) -> bool:
        """Pause the looks where they must be; return whether there is to be none at all now.

        Args:
            now_ms: the pool's time.
        """
        self._safe = False
        resting = local_now() < self._rests_until
        if resting or self._until_ms is None:
            holders = await self._client.holders(self._host, now_ms)
            self._until_ms = holders.released_until_ms
            if resting and not self._released(now_ms) and not _needed(holders):
                return True
        self._rests_until = 0.0
        self._looker.pause(self._why() if self._released(now_ms) else "")
        return False

    async def after_report(
        self, reports: Mapping[str, Mapping[str, str]], holders: Holders, now_ms: int
    ) -> bool:
        """Let go of the driver if no GPU can be lent; return whether the next look is to come now.

        Args:
            reports: device -> the fields that the pool now has.
            holders: as they were read after the look.
            now_ms: the pool's time.
        """
        self._until_ms = holders.released_until_ms
        if self._released(now_ms) or self._looker.paused:
            self._resting = False
            return self._released(now_ms) != bool(self._looker.paused)
        states = {said["state"] for said in reports.values()}
        rests = self._looker.holds and "quarantined" in states and states <= WITHHELD
        if rests and not holders.leases:
            held = await self._looker.rest()
            self._rests_until = local_now() + REST_S
            self._tell(held)
        else:
            self._resting = False
        return False

    def _tell(self, held: str) -> None:
        if not self._resting:
            self._resting = True
            log.info(
                "no GPU of %s can be lent: %s",
                self._host,
                held or f"its driver is let go of between looks, every {REST_S:.0f} s",
            )

    def _released(self, now_ms: int) -> bool:
        return (self._until_ms or 0) > now_ms

    def _why(self) -> str:
        until = time.strftime("%H:%M:%S", time.gmtime((self._until_ms or 0) / 1000))
        return f"{LET_GO}, until {until} UTC"


def _needed(holders: Holders) -> bool:
    """Return whether a look is due early: a lease came, or an operator lends a device again."""
    return bool(holders.leases) or any(d.state == "ok" for d in holders.devices.values())
