"""Keeper of a lease: it renews until its time, its process or its lease ends, and gives it back."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.clock import local_now
from broker.hold.control import Control
from broker.run.signals import STOPPING, Signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import Lease, LeaseClient
    from broker.hold.life import ProcessLife

LONGEST_PAUSE_S: Final = 3600.0

PROCESS_ENDED, TIME_OVER, LOST, STOPPED, RELEASED = (
    "process_ended", "time_over", "lost", "stopped", "released",
)  # fmt: skip
"""Reasons for which a keeper ends."""


class KeptLease:
    """Lease that this process keeps, until `for_s` seconds from now at most.

    Args:
        client: it renews the lease in the background.
        lease: it must be this process's own.
        for_s: 0: no end by time.
        life: the process that the lease ends with; None: it does not end with one.
    """

    def __init__(
        self, client: LeaseClient, lease: Lease, for_s: float, life: ProcessLife | None
    ) -> None:
        self.client, self.lease, self._life = client, lease, life
        self._until = local_now() + for_s if for_s else None
        self._released = False

    @property
    def ends_at(self) -> float | None:
        """End by time, in epoch seconds; None: there is none."""
        return None if self._until is None else time.time() + self._until - local_now()

    @property
    def with_pid(self) -> int | None:
        """Process that it ends with, or None."""
        return None if self._life is None else self._life.pid

    def keep(self, begun: Callable[[], bool]) -> str:
        """Keep the lease until its end and give it back; return the reason.

        Args:
            begun: called once the lease is renewed and its socket listens; False: end at once.

        Raises:
            LeaseError: the lease could not be given back; it ends by its ttl.
        """
        with Signals() as signals, Control(self.lease.token) as control:
            self.client.keep(self.lease)
            self.lease.on_lost(lambda _: signals.wake())
            try:
                return self._until_end(signals, control) if begun() else STOPPED
            finally:
                if not self.lease.lost:
                    self.client.release(self.lease)

    def _until_end(self, signals: Signals, control: Control) -> str:
        while True:
            pause_s = min(self._left_s(), max(self.lease.trusted_s, 0.01), LONGEST_PAUSE_S)
            asked, told = control.fileno(), signals.fileno()
            ready, _, _ = select.select([asked, told], [], [], pause_s)
            if asked in ready:
                control.answer(self._act)
            if self.lease.lost:
                return LOST
            if self._released:
                return RELEASED
            if self._left_s() == 0:
                return TIME_OVER
            if told in ready and STOPPING & {*signals.wait(0)}:
                return PROCESS_ENDED if self._life and self._life.over else STOPPED

    def _left_s(self) -> float:
        return LONGEST_PAUSE_S if self._until is None else max(0.0, self._until - local_now())

    def _act(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do as a command asks: `extend` by seconds, `release`, or tell."""
        match request:
            case {"do": "extend", "seconds": int() | float() as seconds}:
                if self._until is not None:
                    self._until += seconds
            case {"do": "release"}:
                self._released = True
        return {"ends_at": self.ends_at, "with_pid": self.with_pid}


def ended_in_words(kept: KeptLease, why: str) -> str:
    """Return the end of a keeper as a sentence."""
    return {
        PROCESS_ENDED: "given back: its process has ended",
        TIME_OVER: "given back: its time is over",
        LOST: f"lost ({kept.lease.lost_reason}): stop what uses its GPUs",
        STOPPED: "given back",
        RELEASED: "given back by gpu-broker release",
    }[why]
