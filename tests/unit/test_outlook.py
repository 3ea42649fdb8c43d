"""Outlook of many requests at once: the same as that of each by itself, without its cost."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent_sdk.protocol.messages import ANY
from agent_sdk.state import outlook, placement
from agent_sdk.state.devices import DeviceStatus
from agent_sdk.state.outlook import Outlooks
from agent_sdk.state.placement import PlacementRequest
from agent_sdk.state.pool_state import PoolState, counted, look, reasons, standings
from agent_sdk.state.queue import WaiterStatus
from agent_sdk.state.reservations import Reservation
from agent_sdk.state.snapshot import PoolStatus
from agent_sdk.teams.sums import PartySums

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus as Device

SIZES = (0, 1, 100, 199, 200, 201, 400, 500, 700, 999, 1000, 1001, 2000, 5000)


def policy(rng: random.Random) -> PoolStatus:
    return PoolStatus(
        now_ms=1000,
        ready=True,
        epoch="1",
        policy_version=1,
        closed_until_ms=0,
        waiting=0,
        stats={},
        allow_fractional_shares=rng.random() < 0.8,
        max_memory_per_agent_mb=rng.choice((500, 1500, 10**6)),
    )


def device(rng: random.Random, number: int, hosts: int) -> Device:
    """A device in any state, with any use: also more of it used than it has."""
    total_mb = rng.choice((200, 1000, 1000, 2000))
    leases = rng.choice((0, 0, 1, 3))
    return DeviceStatus(
        uuid=rng.choice(("gpu", "amd:")) + str(number),
        index=number,
        host=f"h{number % hosts}",
        name="m",
        model=rng.choice("ab"),
        state=rng.choice(("ok",) * 8 + ("lost", *placement.STATES)),
        reason="",
        drained=rng.random() < 0.1,
        simulated=True,
        total_mb=total_mb,
        system_mb=rng.choice((0, 1)),
        leased_mb=rng.choice((0, 100, total_mb // 2, total_mb)) if leases else 0,
        withheld_mb=rng.choice((0, 0, 0, 100, 300)),
        unleased_mb=rng.choice((0, 0, 1, 300, 700, 3000)),
        leases=leases,
        exclusive="x" if leases == 1 and rng.random() < 0.3 else "",
        reserved_for=rng.choice(("", "", "", "w1", "w2")),
        used_mb=None,
        sampled_ms=0,
        nvml_error=None,
        parent=rng.choice(("", "", "", "p")),
        one_lease=rng.choice(("", "", "", "it is not told what is used")),
    )


def waiter(rng: random.Random, token: str, hosts: int) -> WaiterStatus:
    reserved = token in {"w1", "w2"}
    return WaiterStatus(
        token=token,
        agent=rng.choice("xyz"),
        state=rng.choice(("waiting", "waiting", "waiting", "offered")),
        memory_mb=rng.choice(SIZES),
        devices=rng.choice((1, 1, 1, 2, 3)),
        exclusive=rng.random() < 0.3,
        priority=0,
        asked_host=rng.choice((ANY, ANY, *(f"h{n}" for n in range(hosts)), "unknown")),
        model=rng.choice((ANY, ANY, "a", "b", "other")),
        place=rng.choice((None, 0, 1, 7)),
        capped=rng.random() < 0.1,
        rank=0,
        enqueued_ms=0,
        wait_until_ms=0,
        ttl_ms=1,
        queue_id="",
        offered=(),
        reserved=("gpu0",) if reserved else (),
        owner="",
        client="",
        pid="",
        reservation=Reservation("x", token, ("gpu0",), 300, 0, None) if reserved else None,
    )


def random_pool(seed: int) -> PoolState:
    rng = random.Random(seed)
    hosts = rng.choice((1, 2, 5))
    devices = [device(rng, n, hosts) for n in range(rng.choice((0, 1, 4, 30)))]
    waiters = [waiter(rng, f"w{n}", hosts) for n in range(40)]
    return PoolState(
        pool=policy(rng),
        hosts={},
        devices={x.uuid: x for x in devices},
        leases={},
        waiters={x.token: x for x in waiters},
        sums={"x": PartySums(100, 1), "y": PartySums(10**6, 2)},
    )


def one_by_one(scene: PoolState, wish: PlacementRequest, token: str | None) -> object:
    """The outlook by the rules for one request, with the reasons in their order."""
    return look(wish, scene), [*counted(reasons(wish, scene, token).values()).items()]


@pytest.mark.parametrize("part", range(20))
def test_many_are_told_the_same_as_each_by_itself(part: int) -> None:
    """Over random pools: every size, kind and place, with and without reserved devices."""
    for seed in range(part * 20, part * 20 + 20):
        scene = random_pool(seed)
        outlooks = Outlooks(tuple(scene.devices.values()), scene.pool)
        for x in scene.waiters.values():
            wish = PlacementRequest(
                x.agent, x.memory_mb, x.devices, x.exclusive, x.asked_host, x.model
            )
            token = x.token if x.reserved else None
            told = outlooks.of(wish), [*outlooks.counts(wish, token).items()]
            assert told == one_by_one(scene, wish, token), (seed, wish)


def test_devices_are_judged_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 sizes beside 30 devices: each device is looked at twice, and not 500 times."""
    scene, looked = random_pool(3), 0
    obstacle = placement.obstacle

    def counting(*args: object) -> str:
        nonlocal looked
        looked += 1
        return obstacle(*args)  # type: ignore[arg-type] # as it was called

    (x, *_) = scene.waiters.values()
    plain = replace(
        x, state="waiting", devices=1, exclusive=False, asked_host=ANY, model=ANY, place=0,
        reserved=(), reservation=None,
    )  # fmt: skip
    waiters = {f"n{n}": replace(plain, token=f"n{n}", memory_mb=n + 1) for n in range(500)}
    monkeypatch.setattr(outlook.placement, "obstacle", counting)
    assert len(standings(replace(scene, waiters=waiters))) == 500
    assert 0 < looked <= 2 * len(scene.devices)
