"""Figures and words of the page, of rows as the broker tells them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state import queue, snapshot
from broker.live.sums import Sums
from broker.serializers import device_json, lease_json
from tests.lua.waiters import wait
from tests.page import of_page
from tests.pools import device, granted, said

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


def test_free_memory_is_what_the_next_request_can_be_given(pool: Pool) -> None:
    """Not what an exclusive lease leaves, nor what is left of a device of one lease that cools."""
    whole = device("whole", 1000, used_mb=200)
    alone = device("alone", 1000, index=1, simulated=0, one_lease="it is exclusive")
    pool.report((whole, alone))
    granted(pool.acquire(memory_mb=1, exclusive=1, ttl_ms=3_600_000))
    granted(pool.acquire(memory_mb=100, ttl_ms=1000))
    pool.report((device("whole", 1000, used_mb=0), alone))
    pool.skew(1001)
    pool.reap()
    assert said(pool.acquire(memory_mb=1)) == ["REFUSED", "no_capacity", ""]
    shown, told = figures(pool)
    assert told["left_mb"] > 0
    assert shown == told | {"free_mb": 0}


@pytest.mark.parametrize("known", [True, False])
def test_reserved_device_of_a_large_pool_is_shown_as_reserved(pool: Pool, known: bool) -> None:
    """Also where its waiter is on another page of the queue."""
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(memory_mb=600, ttl_ms=3_600_000))
    for _ in range(7):
        wait(pool, "w", memory_mb=900)
        pool.live_on(5000)
    (found,) = pool.look(snapshot.devices(pool.keys))
    (waiter,) = pool.look(queue.waiters(pool.keys))
    assert found.reservation
    told = {
        "pool": {"pool": {"large": {"gpus": 1}}},
        "devices": {"gpu-a": device_json.row(found, str)},
        "queue": {"w": lease_json.waiter(waiter, 0)} if known else {},
    }
    words = "stateOf, memoryParts, leasable"
    each = "(gpu) => [stateOf(gpu), memoryParts(gpu, []), leasable(gpu)]"
    state, parts, free_mb = of_page(
        "describe.js", words, f"({each})(rows.devices.get('gpu-a'))", told
    )
    assert (state["word"], state["note"], free_mb) == ("reserved", f"for {waiter.agent}", 0)
    assert ", until " in state["means"]
    assert {part["kind"]: part["mb"] for part in parts} == {"leased": 600, "reserved": 400}


def test_hours_of_a_thousand_hosts_are_drawn() -> None:
    """A week has 168 of each; as arguments of one call they were more than a browser takes."""
    hosts = "Array.from({ length: 2000 }, (_, n) => ({ values: Array(168).fill(n / 2) }))"
    assert of_page("usage_data.js", "mostOf", f"mostOf({hosts})") == 999.5
    assert of_page("usage_data.js", "mostOf", "mostOf([])") == 0


def test_reservation_that_the_queue_tells_first_is_not_free() -> None:
    """A waiter's row may be newer than the device's."""
    rows = {
        "devices": {"gpu-a": {"uuid": "gpu-a", "state": "ok", "memory_free_mb": 500}},
        "queue": {"w": {"reserved": ["gpu-a"]}},
    }
    gpu = "rows.devices.get('gpu-a')"
    assert of_page("describe.js", "leasable", f"leasable({gpu})", rows) == 0
    assert of_page("describe.js", "leasable", f"leasable({gpu})", rows | {"queue": {}}) == 500


def test_nothing_free_in_the_whole_pool_has_a_reason() -> None:
    """SAFE_MODE, of the pool or of this broker alone, or a pool that is closed after a loss."""
    now = 1_796_000_000.0
    says = ["SAFE_MODE is on", "SAFE_MODE is on", "closed for a while, as data may have been lost"]
    broker, of_pool = {"safe_mode": False}, {"safe_mode_read_only": False, "closed_until": None}
    cases = [
        (of_pool | {"safe_mode_read_only": True}, broker),
        (of_pool, {"safe_mode": True}),
        (of_pool | {"closed_until": now + 9}, broker),
        (of_pool | {"closed_until": now - 9}, broker),
        (of_pool, broker),
    ]
    every = f"{json.dumps(cases)}.map((each) => nothingFree(...each))"
    assert of_page("figures.js", "nothingFree", every, now=now, read_at=now) == [*says, "", ""]
