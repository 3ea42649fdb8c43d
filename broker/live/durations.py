"""Durations of waits, claims and holds, from the pool's events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.state.events import Event

MOST: Final = 20_000
"""Most waiters in memory; beyond that the oldest are forgotten, and not measured."""

ENDED: Final = ("released", "expired", "revoked", "preempted")
"""Events that end a lease."""

GONE: Final = frozenset({"cancelled", "timed_out", "revoked"})


class Span(NamedTuple):
    """Measured time, with the `event` that ended it.

    wait: from entry into the queue to the grant; claim: from the offer to the grant, a hand-off;
    hold: from the grant to the end of the lease.
    """

    what: Literal["wait", "claim", "hold"]
    seconds: float
    event: str


class Spans:
    """Matcher of beginnings and ends."""

    def __init__(self) -> None:
        self._enqueued: dict[str, int] = {}
        self._offered: dict[str, int] = {}

    def ended_by(self, event: Event) -> Iterator[Span]:
        """Yield the spans that this event ends; events come in their order, each once."""
        token, at_ms = event.token or "", event.at_ms
        enqueued, offered = self._enqueued, self._offered
        if event.event == "waiting":
            _remember(enqueued, token, at_ms)
        elif event.event == "offered":
            _remember(offered, token, at_ms)
        elif event.event == "granted":
            if (since_ms := enqueued.pop(token, None)) is not None:
                yield Span("wait", max(0, at_ms - since_ms) / 1000, event.event)
            if (since_ms := offered.pop(token, None)) is not None:
                yield Span("claim", max(0, at_ms - since_ms) / 1000, event.event)
        if event.event in GONE:
            enqueued.pop(token, None)
            offered.pop(token, None)
        fence = event.fence
        if event.event in ENDED and fence is not None:  # a fence is the time of the grant, in µs
            # What expired while no broker ran is noticed, and told, later
            ended_ms = at_ms if event.ended_ms is None else event.ended_ms
            yield Span("hold", max(0, ended_ms - fence // 1000) / 1000, event.event)


def _remember(times: dict[str, int], token: str, at_ms: int) -> None:
    times[token] = at_ms
    if len(times) > MOST:
        del times[next(iter(times))]
