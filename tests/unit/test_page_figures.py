"""Figures and words of the page, of rows as the broker tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_sdk.state import snapshot
from broker.live.sums import Sums
from broker.serializers import device_json
from tests.page import of_page
from tests.pools import device, granted

if TYPE_CHECKING:
    from tests.pools import Pool

PARTS = (
    device("whole", 80_000, state="mig"),
    device("part-1", 40_000, index=1, model="m1.4g", parent="whole", system_mb=100),
    device("part-2", 40_000, index=2, model="m1.4g", parent="whole", system_mb=100),
    device("other", 20_000, index=3),
)


def figures(pool: Pool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of all GPUs, as the page makes them of its rows, and as the broker tells them."""
    devices = pool.look(snapshot.devices(pool.keys))
    rows = {each.uuid: device_json.row(each, str) for each in devices}
    shown = of_page(
        "figures.js", "figuresOf", "figuresOf([...rows.devices.values()])", {"devices": rows}
    )
    shown["states"], shown["findings"] = dict(shown["states"]), dict(shown["findings"])
    return shown, Sums(devices).told()


def test_divided_gpu_counts_by_its_parts_also_while_its_host_is_away(pool: Pool) -> None:
    """Its own state is `away` then, and no longer `mig`: of large and small pools alike."""
    pool.report(PARTS)
    granted(pool.acquire(memory_mb=10_000, model="m1.4g", ttl_ms=3_600_000))
    shown, told = figures(pool)
    assert shown == told
    assert told == told | {
        "gpus": 2, "total_mb": 100_000, "left_mb": 89_800, "free_mb": 89_800, "leased_mb": 10_000,
    }  # fmt: skip
    pool.live_on(15_001, host="h2")
    shown, away = figures(pool)
    assert away == told | {"free_mb": 0, "states": {"away": 4}}
    assert shown == away
