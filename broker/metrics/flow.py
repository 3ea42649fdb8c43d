"""How long things take, from the pool's stream of events: waits, claims, holds.

Every replica reads the same stream, so each exports the same counts from its own start on:
aggregate with max, not with sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

WAIT_S: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)

CLAIM_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10)

HOLD_S: Final = (1, 10, 60, 300, 900, 3600, 14400, 43200, 86400)

MOST: Final = 20_000
"""Waiters that are kept in mind; of more the oldest are forgotten, and not measured."""

ENDED: Final = {"released", "expired", "revoked"}

GONE: Final = {"left", "lapsed", "revoked"}


class Flow:
    """Histograms that events feed.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._joined: dict[str, int] = {}
        self._offered: dict[str, int] = {}
        self._wait = Histogram(
            "gpu_broker_wait_seconds", "From joining the line to the grant.",
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

    def take(self, at_ms: int, event: Mapping[str, str]) -> None:
        """One event of the stream, in its order."""
        name, token = event.get("event"), event.get("token", "")
        if name == "waiting":
            _remember(self._joined, token, at_ms)
        elif name == "offered":
            _remember(self._offered, token, at_ms)
        elif name == "granted":
            if (joined := self._joined.pop(token, None)) is not None:
                self._wait.observe(max(0, at_ms - joined) / 1000)
            if (offered := self._offered.pop(token, None)) is not None:
                self._claim.observe(max(0, at_ms - offered) / 1000)
        if name in GONE:
            self._joined.pop(token, None)
            self._offered.pop(token, None)
        fence = event.get("fence", "")
        if name in ENDED and fence.isdigit():  # a fence is the time of the grant, in µs
            self._hold.labels(name).observe(max(0, at_ms - int(fence) // 1000) / 1000)


def _remember(times: dict[str, int], token: str, at_ms: int) -> None:
    times[token] = at_ms
    if len(times) > MOST:
        del times[next(iter(times))]
