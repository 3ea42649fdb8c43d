"""A real Redis whose clock steps: no lease is stretched, none that is renewed is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import eventually
from tests.faults.clock import Clock
from tests.reports import register
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

HOUR_S = 3600


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """Redis's, right at first."""
    return Clock.make(tmp_path / "clock")


@pytest.fixture
def stepping(clock: Clock) -> Iterator[Server]:
    """A Redis with that clock."""
    with running(env=clock.env) as server:
        yield server


@pytest.mark.parametrize("back_s", [30, HOUR_S])
def test_lease_that_is_renewed_outlives_steps_and_one_that_is_not_ends_in_time(
    stepping: Server, clock: Clock, back_s: int
) -> None:
    """Back, and forward again to what is right: by TIME itself the lease would last an hour."""
    with LeaseClient(Store(stepping.url), hostname="h1") as client:
        register(client)
        with client.lease("kept", memory_mb=100, ttl_s=2) as kept:
            left = client.acquire("left", memory_mb=100, ttl_s=2)
            began, before_s = time.monotonic(), int(client.redis.time()[0])  # type: ignore[index] # a blocking client answers at once
            clock.shift(-back_s)
            after_s = int(client.redis.time()[0])  # type: ignore[index] # a blocking client answers at once
            assert before_s - back_s - 1 <= after_s <= before_s - back_s + 5
            eventually(lambda: client.reap() and client.lookup(left.token) == "expired", 10)
            assert 1.5 < time.monotonic() - began < 2 + 1.5
            younger = client.acquire("younger", memory_mb=100, ttl_s=60)
            assert younger.fence > left.fence
            clock.shift(0)
            time.sleep(2.5)
            assert not kept.lost
            assert kept.trusted_s > 0
            assert client.renew(younger).remaining_ms > 0
            newest = client.acquire("newest", memory_mb=100)
            assert newest.fence > younger.fence
