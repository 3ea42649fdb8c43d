"""Verbs about teams, of both clients: policies, limits of time, requests to yield."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import (
    AsyncLeaseClient,
    BadRequest,
    Conflict,
    LeaseClient,
    LeaseLost,
    StillWaiting,
    Store,
    TeamLimit,
    UnknownToken,
)
from agent_sdk.teams.policy import MOST_TEAMS, TeamPolicy
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from agent_sdk.teams.status import TeamStatus
    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=1, memory_mb=8100)
"""One device of 8,100 MiB."""


def test_policy_that_is_wrong_is_refused_before_any_sending(client: LeaseClient) -> None:
    """All or nothing, with the name of what is wrong."""
    assert client.teams() == ()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lab": {"wieght": 1}}, "wieght"), ({"two words": {}}, "two words"),
        ({"lab": {"weight": -1}}, "weight"), ({f"t{n}": {} for n in range(MOST_TEAMS + 1)}, "256"),
    ]  # fmt: skip
    for teams, word in wrong:
        with pytest.raises(BadRequest, match=word):
            client.set_teams({"ok": {}} | teams)
    assert client.teams() == ()


def test_both_clients_set_and_read_all_teams(pool: TestBroker, client: LeaseClient) -> None:
    """A team that is not named has no policy any more, and a stale version is refused."""

    def writers() -> list[str]:
        return [e.fields["by"] for e in client.events() if e.event == "teams"]

    before = len(writers())
    first = client.set_teams({"lab": {"weight": 2, "nominal_mb": 4000}, "ward": TeamPolicy()})
    lease = client.acquire("a", memory_mb=5000, team="lab")
    lab, ward = client.teams()
    assert (lab.name, lab.weight, lab.nominal_mb, lab.borrow_mb) == ("lab", 2, 4000, None)
    assert (lab.used_mb, lab.leases, lab.borrowed_mb, lab.listed) == (5000, 1, 1000, True)
    assert (ward.name, ward.weight, ward.used_mb) == ("ward", 1, 0)

    async def anew() -> tuple[TeamStatus, ...]:
        async with AsyncLeaseClient(Store(pool.url)) as other:
            assert await other.set_teams({"ward": {}}, by="ann", version=first) == first + 1
            return await other.teams()

    lab, ward = asyncio.run(anew())
    assert (lab.listed, lab.used_mb, ward.listed) == (False, 5000, True)
    with pytest.raises(Conflict, match=f"version {first + 1}"):
        client.set_teams({}, version=first)
    client.set_teams({}, version=first + 1)
    assert writers()[before:] == ["sdk", "ann", "sdk"]
    client.release(lease)
    assert client.teams() == ()


def test_holder_extends_its_lease_within_its_teams_limit(
    pool: TestBroker, client: LeaseClient
) -> None:
    """An operator goes beyond it, and takes the limit away."""
    client.set_teams({"lab": {"max_hold_s": 100}})
    lease = client.acquire("a", memory_mb=100, team="lab")
    until_ms = client.extend_hold(lease.token, 50)
    assert until_ms is not None
    assert 45_000 < until_ms - time.time() * 1000 < 51_000
    for seconds in (101, None):
        with pytest.raises(TeamLimit, match=r"at most 100 s .*max_hold_s"):
            client.extend_hold(lease.token, seconds)
    longer_ms = client.extend_hold(lease.token, 7200, by="ann")
    assert longer_ms is not None
    assert longer_ms > until_ms + 7_000_000
    assert client.extend_hold(lease.token, None, by="ann") is None
    client.release(lease)
    with pytest.raises(LeaseLost):
        client.extend_hold(lease.token, 50)

    async def other() -> None:
        async with AsyncLeaseClient(Store(pool.url)) as mine:
            with pytest.raises(BadRequest):
                await mine.extend_hold("short", 1)

    asyncio.run(other())
    client.set_teams({})


def test_waiter_asks_a_holder_to_yield(pool: TestBroker, client: LeaseClient) -> None:
    """One that takes such requests; another declines, and what does not wait asks nothing."""
    soft = client.acquire("soft", memory_mb=4000, yields=True)
    hard = client.acquire("hard", memory_mb=4000)
    with pytest.raises(StillWaiting) as waits:
        client.acquire("next", memory_mb=3000, wait_s=0.01, keep_place=True)
    waiter = waits.value.token
    assert waiter is not None
    assert client.request_yield(soft.token, waiter) is True
    assert client.request_yield(hard.token, waiter) is False
    for wrong in ((waiter, soft.token), (soft.token, hard.token)):
        with pytest.raises(UnknownToken):
            client.request_yield(*wrong)
    with pytest.raises(UnknownToken):
        client.request_yield(soft.token, waiter, owner="another")
    wanted: Any = client.redis.hget(client.keys.record(soft.token), "wanted")
    assert wanted == "3000:next"
    for each in (soft.token, hard.token, waiter):
        client.release(each)
