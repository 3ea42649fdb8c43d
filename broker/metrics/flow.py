"""Histograms of durations: waits, claims, holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Histogram

from broker.live.durations import ENDED, Spans

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from agent_sdk.state.events import Event

WAIT_S: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)

CLAIM_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10)

HOLD_S: Final = (1, 10, 60, 300, 900, 3600, 14400, 43200, 86400)


class Flow:
    """Histograms fed by events.

    Args:
        registry: the registry of the histograms.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._spans = Spans()
        self._wait = Histogram(
            "gpu_broker_wait_seconds", "From entry into the queue to the grant.",
            buckets=WAIT_S, registry=registry,
        )  # fmt: skip
        self._claim = Histogram(
            "gpu_broker_claim_seconds", "From the offer to the grant: a hand-off.",
            buckets=CLAIM_S, registry=registry,
        )  # fmt: skip
        self._hold = Histogram(
            "gpu_broker_hold_seconds", "From the grant to the end of a lease.", ["reason"],
            buckets=HOLD_S, registry=registry,
        )  # fmt: skip
        for reason in ENDED:
            self._hold.labels(reason)

    def take(self, event: Event, *, counts: bool = True) -> None:
        """Take one event of the stream, in its order; `counts`: no other worker counts it."""
        for span in self._spans.ended_by(event):
            if not counts:
                continue
            if span.what == "wait":
                self._wait.observe(span.seconds)
            elif span.what == "claim":
                self._claim.observe(span.seconds)
            else:
                self._hold.labels(span.event).observe(span.seconds)
