"""Ends of what is gone, as the page tells them by the events that it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state import events, queue, snapshot
from broker.serializers import lease_json
from tests.lua.waiters import wait
from tests.page import of_page
from tests.pools import device, granted, token

if TYPE_CHECKING:
    from tests.pools import Pool

ONE, OTHER = "nightly-run-0000001", "nightly-run-0000002"
"""Tokens of one beginning, which is all that a viewer knows."""


def told(pool: Pool, whole: bool) -> list[dict[str, Any]]:
    """The events as /live tells them."""
    found = pool.look(events.newest(pool.keys, 100))
    return [lease_json.event(each, {}, whole=whole) for each in found]


@pytest.mark.parametrize("whole", [True, False])
def test_end_of_a_lease_is_its_own(pool: Pool, whole: bool) -> None:
    """Not that of a later lease whose token begins alike."""
    pool.report((device("gpu-a", 1000),))
    names = []
    for each in (ONE, OTHER):
        granted(pool.acquire(each, memory_mb=100))
        (lease,) = pool.look(snapshot.leases(pool.keys))
        names.append(lease_json.name_of(lease))
        if each == ONE:
            pool.release(each)
        else:
            pool.revoke(each, force=1)
    found = of_page(
        "ends.js", "endOfLease", f"{names}.map((id) => endOfLease(id)?.event)",
        events=told(pool, whole),
    )  # fmt: skip
    assert found == ["released", "revoked"]
    assert of_page("ends.js", "endOfLease", "endOfLease('nightly-…1') ?? null") is None


@pytest.mark.parametrize("whole", [True, False])
def test_end_of_a_wait_is_its_own(pool: Pool, whole: bool) -> None:
    """Neither that of another wait nor that of the lease that it became."""
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(token("on"), memory_mb=900))
    rows = {}
    for each, agent in ((ONE, "ann"), (OTHER, "bob")):
        pool.acquire(each, agent, memory_mb=900, wait_ms=60_000)
    for waiter in pool.look(queue.waiters(pool.keys)):
        name = lease_json.name_of(waiter)
        rows[name] = {"agent": waiter.agent, "token": waiter.token if whole else name}
    pool.release(token("on"))
    granted(pool.acquire(ONE, "ann", memory_mb=900, wait_ms=60_000))
    pool.revoke(ONE, force=1)
    pool.release(OTHER)
    found = of_page(
        "ends.js", "endOfWait",
        f"Object.entries({rows}).map(([id, row]) => endOfWait(id, row)?.event)",
        events=told(pool, whole),
    )  # fmt: skip
    assert found == ["granted", "cancelled"]
    (one, _) = rows
    assert of_page(
        "ends.js", "endOfWait", f"endOfWait('{one}', null)?.event", events=told(pool, whole)
    )


def test_wait_is_told_by_its_events_alone(pool: Pool) -> None:
    """A waiter that is revoked has had no lease."""
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(token("on"), memory_mb=900))
    wait(pool, "w", memory_mb=900)
    (waiter,) = pool.look(queue.waiters(pool.keys))
    pool.revoke(waiter.token)
    name = lease_json.name_of(waiter)
    found = of_page("ends.js", "endOfWait", f"endOfWait('{name}', null)", events=told(pool, False))
    assert found["event"] == "revoked"
