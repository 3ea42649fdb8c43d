"""Figures of all devices of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.state import snapshot
from broker.live.sums import Sums
from tests.pools import device, granted

if TYPE_CHECKING:
    from tests.pools import Pool

PARTS = (
    device("whole", 80_000, state="mig"),
    device("part-1", 40_000, index=1, model="m1.4g", parent="whole", system_mb=100),
    device("part-2", 40_000, index=2, model="m1.4g", parent="whole", system_mb=100),
    device("other", 20_000, index=3),
)


def test_divided_gpu_counts_by_its_parts_also_while_its_host_is_away(pool: Pool) -> None:
    """Its own state is `away` then, and no longer `mig`."""
    pool.report(PARTS)
    granted(pool.acquire(memory_mb=10_000, model="m1.4g", ttl_ms=3_600_000))
    before = Sums(pool.look(snapshot.devices(pool.keys)))
    assert before.told() == before.told() | {
        "gpus": 2, "total_mb": 100_000, "left_mb": 89_800, "free_mb": 89_800, "leased_mb": 10_000,
    }  # fmt: skip
    assert before.capacity_mb == 99_800
    pool.live_on(15_001, host="h2")
    devices = pool.look(snapshot.devices(pool.keys))
    assert {each.state for each in devices} == {"away"}
    away = Sums(devices)
    assert away.told() == before.told() | {"free_mb": 0, "states": {"away": 4}}
    assert away.capacity_mb == before.capacity_mb
    by_parts = Sums(devices[:1])
    by_parts.add(devices[1:])
    assert by_parts.told() == away.told()
