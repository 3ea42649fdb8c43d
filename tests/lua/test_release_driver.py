"""An operator wants a host's driver let go of: a word for its reporter, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.pools import device, granted, said, token

if TYPE_CHECKING:
    from tests.pools import Pool


@pytest.fixture
def gpus(pool: Pool) -> Pool:
    """A host with one device, and a lease on it."""
    pool.report((device("gpu-a"),), deadline_ms=120_000)
    granted(pool.acquire(token("a"), memory_mb=1000))
    return pool


def test_host_is_told_until_when_and_the_devices_stay_as_they_are(gpus: Pool) -> None:
    """Its next report decides about them; a later call takes the word back."""
    before = gpus.redis.hgetall(gpus.keys.device("gpu-a"))
    reply = gpus.release_driver("h1")
    assert reply[0] == "DRIVER"
    until_ms = reply[-1]
    assert until_ms == reply[1] + 60_000
    told = gpus.redis.hget(gpus.keys.host("h1"), "driver_released_until_ms")
    assert told == str(until_ms)
    assert gpus.redis.hgetall(gpus.keys.device("gpu-a")) == before
    assert gpus.release_driver("h1", 0)[-1] == 0
    assert gpus.redis.hget(gpus.keys.host("h1"), "driver_released_until_ms") == "0"
    events = [row for _, row in gpus.redis.xrange(gpus.keys.events)][-2:]
    assert [e["event"] for e in events] == ["driver_released", "driver_taken"]
    assert events[0]["by"] == "operator"
    assert events[0]["until_ms"] == str(until_ms)
    audit(gpus.redis, gpus.keys)


def test_unknown_host_is_refused(gpus: Pool) -> None:
    """No hash of it is made: it would pass for a host that has reported."""
    assert said(gpus.release_driver("h2"))[:2] == ["REFUSED", "host_unknown"]
    assert not gpus.redis.exists(gpus.keys.host("h2"))


@pytest.mark.parametrize("for_ms", [-1, 86_400_001, "x"])
def test_time_beyond_a_day_is_refused(gpus: Pool, for_ms: int) -> None:
    """A forgotten release ends by itself."""
    assert said(gpus.release_driver("h1", for_ms))[:2] == ["REFUSED", "bad_request"]
