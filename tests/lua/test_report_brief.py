"""A report that says what changed: what it leaves out is as the pool has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.protocol.report import changes
from tests.lua.costs import commands
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from agent_sdk.protocol.report import Fields

TOLD = {
    "utilization_gpu_pct": "1.000", "temperature_c": "30.000", "processes": "[]", "idle": "",
    "reported_unleased_mb": "0", "unattributed_mb": "0", "cooling_used_mb": "0",
    "cooling_unattributed_mb": "0", "cooling": "", "simulated": 0, "listed": "1",
}  # fmt: skip


def told(**more: Any) -> dict[str, Any]:
    """A device's report with all that a reporter says."""
    return device("gpu-a", **TOLD | more)[1]


def brief(pool: Pool, said: dict[str, Any], row: dict[str, str] | None = None) -> Fields:
    """Report what differs from the device, or from it as it was read before."""
    fields = changes(tuple(said.items()), row or pool.hash("device:gpu-a"))
    assert pool.report((("gpu-a", dict(fields)),), sampled_ms=pool.reap()[1])[0] == "REPORTED"
    return fields


@pytest.fixture
def full(pool: Pool) -> Pool:
    """A pool whose device was reported in full."""
    pool.report((("gpu-a", told()),))
    return pool


def test_quiet_device_is_told_in_three_words_and_two_times(full: Pool) -> None:
    """Only when it was seen and listed is written: each further device costs a read and a write."""
    before = full.hash("device:gpu-a")
    full.skew(5000)
    assert [name for name, _ in brief(full, told())] == ["same", "state", "reported_unleased_mb"]
    after = full.hash("device:gpu-a")
    assert {name for name in after if after[name] != before.get(name)} == {
        "listed_ms",
        "sampled_ms",
    }


def test_quiet_device_costs_two_calls(full: Pool) -> None:
    """One that is reported in full costs as many, which are longer."""
    same = dict(changes(tuple(told().items()), full.hash("device:gpu-a")))
    full.checked = False

    def cost(*devices: Any) -> int:
        return commands(full.redis, lambda: full.report(devices, sampled_ms=1))[1]

    assert cost(("gpu-a", same)) - cost() == 2


def test_measurement_that_changed_is_told_and_kept(full: Pool) -> None:
    """And no other is."""
    said = brief(full, told(temperature_c="31.500"))
    assert dict(said).keys() == {"same", "state", "reported_unleased_mb", "temperature_c"}
    assert full.hash("device:gpu-a")["temperature_c"] == "31.500"
    assert full.hash("device:gpu-a")["utilization_gpu_pct"] == "1.000"


def test_memory_in_use_without_a_lease_is_settled(full: Pool) -> None:
    """The sum is stated each time, because leases move it in between."""
    brief(full, told(used_mb=300, reported_unleased_mb="300"))
    assert full.free() == {"gpu-a": 700}
    brief(full, told())
    assert full.free() == {"gpu-a": 1000}


def test_memory_by_the_drivers_word_alone_is_settled(pool: Pool) -> None:
    """A lease comes, and the same sum says something else of the rest."""
    said = device("gpu-a", simulated=0, used_mb=400)[1]
    pool.report((("gpu-a", said),))
    assert pool.free() == {"gpu-a": 600}
    granted(pool.acquire(token("t"), memory_mb=400))
    brief(pool, said)
    brief(pool, said | {"used_mb": 100})
    assert pool.number("gpu-a", "unleased_mb") == 100


def test_cooling_lease_is_given_back_by_proof(full: Pool) -> None:
    """A device with withheld memory is looked at in full."""
    granted(full.acquire(token("t"), memory_mb=400, ttl_ms=1000))
    full.skew(1001)
    full.reap()
    assert full.number("gpu-a", "withheld_mb") == 400
    full.skew(10)
    brief(full, told())
    assert full.number("gpu-a", "withheld_mb") == 0


def test_device_of_a_silent_host_comes_back_with_all_it_is(full: Pool) -> None:
    """Its state is another, so the report is a full one, and the event says why."""
    full.live_on(20_000, host="h2")
    assert full.hash("device:gpu-a")["state"] == "away"
    assert "same" not in dict(brief(full, told()))
    assert full.hash("device:gpu-a")["state"] == "ok"


def test_device_that_went_away_since_it_was_read_comes_back(full: Pool) -> None:
    """The state is stated each time."""
    row = full.hash("device:gpu-a")
    full.live_on(20_000, host="h2")
    assert "same" in dict(brief(full, told(), row))
    assert full.hash("device:gpu-a")["state"] == "ok"
    assert full.free() == {"gpu-a": 1000}


def test_device_that_was_forgotten_since_it_was_read_is_not_registered(full: Pool) -> None:
    """A part of a report makes no device; the next one, in full, does."""
    row = full.hash("device:gpu-a")
    full.forget("gpu-a")
    brief(full, told(), row)
    assert full.hash("device:gpu-a") == {}
    full.report((("gpu-a", told()),))
    assert full.free() == {"gpu-a": 1000}


def test_device_that_another_host_has_taken_since_it_was_read_moves_back(full: Pool) -> None:
    """The last host that names a device has it, with or without the rest."""
    row = full.hash("device:gpu-a")
    full.report((("gpu-a", told()),), host="h2")
    brief(full, told(), row)
    assert full.hash("device:gpu-a")["host"] == "h1"


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "m2"), ("total_mb", 2000), ("system_mb", 10), ("one_lease", "mode"), ("parent", "x"),
     ("idle_unleased_mb", 7), ("idle", "x"), ("quarantine", "XID 79"), ("reason", "warm"),
     ("name", "Other")],
)  # fmt: skip
def test_any_other_change_has_the_effect_of_a_full_report(
    full: Pool, name: str, value: Any
) -> None:
    """The device, its places and its events are those that the whole report leaves."""
    brief(full, told(**{name: value}))
    found, events = full.stored(), full.events()
    other = Pool(full.redis, functions=full.functions)
    full.redis.copy(f"{full.keys.base}:test_frozen_us", f"{other.keys.base}:test_frozen_us")
    other.report((("gpu-a", told()),))
    other.report((("gpu-a", told(**{name: value})),), sampled_ms=other.reap()[1])
    assert events == other.events()
    mine = {key.removeprefix(full.keys.base): value for key, value in found.items()}
    theirs = {key.removeprefix(other.keys.base): v for key, v in other.stored().items()}
    mine.pop(":pool"), theirs.pop(":pool")
    assert mine == theirs
