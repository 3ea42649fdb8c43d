"""Durations of waits, claims and holds, from the pool's events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_sdk.state.events import Event, newest
from broker.live.durations import Span, Spans
from tests.pools import device, granted, token

if TYPE_CHECKING:
    from tests.pools import Pool


@pytest.mark.parametrize("away_ms", [0, 10_800_000])
def test_lease_was_held_until_its_right_ended(pool: Pool, away_ms: int) -> None:
    """Its end is noticed later, where neither a broker nor an agent was there for hours."""
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(token("a"), ttl_ms=20_000))
    pool.live_on(10_000)
    pool.skew(away_ms)
    pool.live_on(45_000)  # holders come first for 30 s
    pool.reap()
    spans = Spans()
    (hold,) = (x for event in pool.look(newest(pool.keys, 100)) for x in spans.ended_by(event))
    assert (hold.what, hold.event) == ("hold", "expired")
    assert hold.seconds == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("ended", [{}, {"ended_at_ms": ""}, {"ended_at_ms": "x"}])
def test_end_without_its_time_counts_when_it_is_told(ended: dict[str, str]) -> None:
    """An event of an older version, or one written by hand."""
    event = Event("5000-0", "released", {"token": "t", "fence": "2000000"} | ended)
    assert list(Spans().ended_by(event)) == [Span("hold", 3.0, "released")]
