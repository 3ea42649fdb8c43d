"""A device's hash is removed by hand, with `DEL`: no request gets it, and no verb breaks on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_MS = 86_400_000

GPUS = tuple(device(f"gpu-{n}", 1000 - n, index=n, model="L4") for n in range(3))


@pytest.fixture
def lab(pool: Pool) -> Iterator[Pool]:
    """Three GPUs; when the test is over their host names them, so that they are known anew."""
    pool.report(GPUS, deadline_ms=DAY_MS)
    yield pool
    pool.report(GPUS, deadline_ms=DAY_MS)


def remove(pool: Pool, name: str) -> None:
    pool.redis.delete(f"{pool.keys.base}:device:{name}")
    pool.by_hand()


ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "share": ("gpu-0", {}), "share of a model": ("gpu-0", {"model": "L4"}),
    "share of a host": ("gpu-0", {"host": "h1"}), "packed": ("gpu-2", {"placement": "pack"}),
    "whole": ("gpu-2", {"exclusive": 1}), "several": ("gpu-2", {"devices": 2}),
}  # fmt: skip


@pytest.mark.parametrize(("gone", "ask"), ASKS.values(), ids=ASKS)
def test_device_that_is_removed_is_given_to_none(lab: Pool, gone: str, ask: dict[str, Any]) -> None:
    """A request is refused for once, or gets another one; never a lease of nothing."""
    remove(lab, gone)
    reply = lab.acquire(token("1"), **ask)
    if reply[0] != "GRANTED":
        assert said(reply)[:2] == ["REFUSED", "no_capacity"]
        reply = lab.acquire(token("2"), **ask)
    named = granted(reply).devices
    assert named
    assert gone not in dict(named)


def test_policies_are_set_beside_a_device_that_is_removed(lab: Pool) -> None:
    """Sums by model are counted without it."""
    remove(lab, "gpu-0")
    assert said(lab.set_teams(a="nominal_mb@L4=2000"))[0] == "POLICY"
    lab.set_teams()


def test_reservation_of_a_device_that_is_removed_ends(lab: Pool) -> None:
    """Its waiter polls, others release, and it reserves another one."""
    for n in range(3):
        granted(lab.acquire(token(f"x{n}"), "x", memory_mb=700, ttl_ms=0))
    ask = {"agent": "w", "memory_mb": 900, "wait_ms": 600_000}
    lab.acquire(token("w"), **ask)
    for _ in range(11):
        lab.live_on(3000)
        lab.acquire(token("w"), **ask)
    reserved = lab.hash(f"record:{token('w')}")["reserved"]
    held = {lab.hash(f"record:{token(f'x{n}')}")["devices"].partition("=")[0]: n for n in range(3)}
    remove(lab, reserved)
    others = [n for uuid, n in held.items() if uuid != reserved]
    lab.release(token(f"x{others[0]}"))
    assert lab.acquire(token("w"), **ask)[0] == "GRANTED"
    for n in range(3):
        lab.release(token(f"x{n}"))
    lab.release(token("w"))
