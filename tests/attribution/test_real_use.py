"""Use of a lease from the host's first look to the pool's sums, over a real store."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import eventually
from tests.usage import numbers, words

if TYPE_CHECKING:
    from agent_sdk import LeaseClient
    from tests.attribution.machine import Machine

WORKS = {"utilization_gpu_pct": 50, "power_draw_w": 200}


def use_of(client: LeaseClient, token: str, uuid: str = "GPU-a") -> dict[str, int]:
    """Knowledge of the pool of a lease on a device."""
    line: Any = client.redis.hget(f"{client.keys.base}:use:{uuid}", token)
    return numbers(line or "")


def over(client: LeaseClient, token: str, uuid: str = "GPU-a") -> dict[str, int]:
    """The same, once more than the beginning is told; before, nothing."""
    use = use_of(client, token, uuid)
    return use if "busy_ms" in use else {}


def finished(client: LeaseClient, token: str) -> dict[str, str]:
    """The entry of a lease that is over, once it has been folded."""
    client.reap()
    rows: Any = client.redis.xrange(f"{client.keys.base}:history")
    leases = (words(row["lease"]) for _, row in rows)
    return next((lease for lease in leases if lease["token"] == token), {})


def sums(client: LeaseClient) -> dict[str, int]:
    """The sums of the one team, agent and model of these days."""
    found: dict[str, int] = {}
    for key in client.redis.scan_iter(f"{client.keys.base}:usage:????-??-??"):
        lines: Any = client.redis.hgetall(key)
        for line in lines.values():
            for name, value in numbers(line).items():
                found[name] = found.get(name, 0) + value
    return found


def test_use_of_a_lease_goes_into_the_pool_s_sums(machine: Machine) -> None:
    """An engine that works half of the time on a GPU of 200 W, until its lease is revoked."""
    client = machine.client
    machine.is_now(**WORKS)
    with machine.reporter(), machine.holder("keep", memory_mb=4000) as holder:
        machine.is_now((holder.child, 3500), **WORKS)
        begun = eventually(lambda: use_of(client, holder.token), 10)
        assert begun.keys() <= {"until_ms", "peak_mb"}
        time.sleep(3)
        client.revoke(holder.token, force=True)
        use = eventually(lambda: over(client, holder.token), 5)
        assert use["known_ms"] >= 1500
        idle_ms = use["known_ms"] / 2 - use["busy_ms"]
        assert -2 <= idle_ms <= 600, "it was idle until its engine was there"
        assert use["energy_mj"] == pytest.approx(200 * use["known_ms"], abs=3)
        assert use["peak_mb"] == 3500
        said = eventually(lambda: finished(client, holder.token), 20)
        assert {name: int(said[name]) for name in ("known_ms", "busy_ms", "peak_mb")} == {
            name: use[name] for name in ("known_ms", "busy_ms", "peak_mb")
        }
        assert int(said["energy_mj"]) == use["energy_mj"]
        assert use_of(client, holder.token) == {}
        day = sums(client)
        part = 4000 / 9700
        assert day["known_gpu_ms"] == pytest.approx(part * use["known_ms"], abs=2)
        assert day["busy_gpu_ms"] == pytest.approx(part * use["busy_ms"], abs=2)
        assert day["energy_mj"] == use["energy_mj"]
        assert day["above_mb_ms"] == 500 * int(day["held_ms"])


def test_use_of_a_running_lease_is_told_every_fifteen_seconds(machine: Machine) -> None:
    """And a second reporter of the host, which names no findings, adds nothing to it."""
    client, told = machine.client, set[int]()
    machine.is_now(**(WORKS | {"utilization_gpu_pct": 0}))
    with machine.reporter(), machine.holder("keep", memory_mb=4000) as holder, machine.reporter():
        begun = eventually(lambda: use_of(client, holder.token), 10)
        until = time.monotonic() + 18
        while time.monotonic() < until:
            told.add(use_of(client, holder.token)["until_ms"])
            time.sleep(0.05)
        use = use_of(client, holder.token)
    first, *later = sorted(told)
    assert first == begun["until_ms"]
    assert 1 <= len(later) <= 2
    assert all(other - one >= 15_000 for one, other in pairwise(later))
    assert use["known_ms"] == use["until_ms"] - begun["until_ms"], "no gap, and none twice"


def test_use_of_a_simulated_gpu_is_its_time_and_the_power_of_an_idle_one(machine: Machine) -> None:
    """Nothing computes on it: all of the time is idle, at 60 W, and its memory has no peak."""
    machine.env["GPU_BROKER_DEVICES"] = "sim:1x10000"
    client = machine.client
    with machine.reporter():
        with client.lease("agent", memory_mb=1000) as lease:
            eventually(lambda: use_of(client, lease.token, "SIM-h1-0"), 10)
            time.sleep(1.5)
        use = eventually(lambda: over(client, lease.token, "SIM-h1-0"), 5)
    assert use["known_ms"] >= 600
    assert (use["busy_ms"], use["energy_mj"]) == (0, pytest.approx(60 * use["known_ms"], abs=2))
    assert "peak_mb" not in use
