"""Teams in requests of the SDK: the client's own, one by call, and what travels with a lease."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

import pytest

import agent_sdk
from agent_sdk import AsyncLeaseClient, BadRequest, Conflict, LeaseClient, Store
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=2, memory_mb=1000)
"""Two devices of 1000 MiB on one host."""


@pytest.fixture
def lab(pool: TestBroker, client: LeaseClient) -> Iterator[LeaseClient]:
    """A client whose team is `lab`."""
    assert client.pool().waiting == 0
    with LeaseClient(Store(pool.url), hostname=pool.host, team="lab") as found:
        yield found


def record(client: LeaseClient, token: str) -> dict[str, str]:
    """The record of a lease, as it is stored."""
    found: Any = client.redis.hgetall(client.keys.record(token))
    return dict(found)


def test_requests_count_for_the_clients_team_unless_they_name_one(lab: LeaseClient) -> None:
    """The default team is stored by no name, as in a pool without teams."""
    own = lab.acquire("a", memory_mb=100)
    named = lab.acquire("a", memory_mb=100, team="ward")
    default = lab.acquire("a", memory_mb=100, team="default")
    none = lab.acquire("a", memory_mb=100, team=None)
    teams = [record(lab, x.token).get("team") for x in (own, named, default, none)]
    assert teams == ["lab", "ward", None, "lab"]
    sums: Any = lab.redis.hmget(lab.keys.agents, "team lab", "team ward", "team default")
    assert sums == ["200", "100", "100"]


def test_team_of_a_client_comes_from_the_environment(
    pool: TestBroker, client: LeaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that asks for others takes none: these say for themselves."""
    with pool.environment():
        monkeypatch.setenv("GPU_BROKER_TEAM", "ward")
        with LeaseClient.from_env() as own:
            assert record(client, own.acquire("a", memory_mb=100).token)["team"] == "ward"
        with LeaseClient(Store(pool.url), hostname=pool.host, for_others=True) as broker:
            assert "team" not in record(client, broker.acquire("a", memory_mb=100).token)
        with agent_sdk.lease("a", memory_mb=100) as lease:
            assert record(client, lease.token)["team"] == "ward"
        monkeypatch.setenv("GPU_BROKER_TEAM", "")
        with agent_sdk.lease("a", memory_mb=100) as lease:
            assert "team" not in record(client, lease.token)


def test_asyncio_client_has_the_same_options(pool: TestBroker, client: LeaseClient) -> None:
    """Its team, and what a lease lets others do."""

    async def ask() -> str:
        async with AsyncLeaseClient(Store(pool.url), hostname=pool.host, team="lab") as mine:
            return (await mine.acquire("a", memory_mb=100, preemptible=True, yields=True)).token

    found = record(client, asyncio.run(ask()))
    assert (found["team"], found["preemptible"], found["yields"]) == ("lab", "1", "1")


def test_lease_says_what_others_may_do_with_it(client: LeaseClient) -> None:
    """Nothing is stored of what is not asked for."""
    plain = record(client, client.acquire("a", memory_mb=100).token)
    assert not plain.keys() & {"team", "preemptible", "yields", "evictions"}
    off = client.acquire("a", memory_mb=100, preemptible=False, yields=False, after=None)
    assert record(client, off.token).keys() == plain.keys()
    client.redis.set(f"{client.keys.base}:evicted:{'e' * 16}", 2)
    again = client.acquire("a", memory_mb=100, preemptible=True, yields=True, after="e" * 16)
    found = record(client, again.token)
    assert (found["preemptible"], found["yields"], found["evictions"]) == ("1", "1", "2")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("team", "two words"), ("team", ""), ("team", 7), ("team", "x" * 65), ("after", "short"),
        ("after", 7), ("preemptible", "false"), ("yields", "no"),
    ],
)  # fmt: skip
def test_options_of_other_forms_are_refused_before_any_sending(
    client: LeaseClient, option: str, value: object
) -> None:
    """In the words of the option."""
    with pytest.raises(BadRequest, match=option):
        client.acquire("a", memory_mb=100, **{option: value})  # type: ignore[arg-type] # wrong values
    assert client.leases() == ()


def test_repeat_of_a_token_for_another_team_is_a_conflict(lab: LeaseClient) -> None:
    """The team is a part of the request."""
    lease = lab.acquire("a", memory_mb=100)
    assert lab.acquire("a", memory_mb=100, token=lease.token).fence == lease.fence
    with pytest.raises(Conflict):
        lab.acquire("a", memory_mb=100, token=lease.token, team="ward")


def test_team_travels_with_the_claim_of_a_lease(lab: LeaseClient) -> None:
    """In the grant, pickled, and in the adopter's; a pool that forgets it counts it anew."""
    before = list(lab.redis.scan_iter(f"{lab.keys.base}*"))
    for key in before:
        lab.redis.copy(key, f"saved:{key}")
    lease = lab.acquire("a", memory_mb=100, ttl_s=30)
    assert lease.claim is not None
    assert lease.claim.team == "lab"
    assert pickle.loads(pickle.dumps(lease)).claim == lease.claim
    adopted = lab.adopt(lease.token)
    assert adopted.claim == lease.claim
    with lab.redis.pipeline() as pipe:  # the store is as it was before
        pipe.delete(*lab.redis.scan_iter(f"{lab.keys.base}*"))
        for key in before:
            pipe.rename(f"saved:{key}", key)
        pipe.execute()
    lab.renew(adopted)
    assert record(lab, lease.token)["team"] == "lab"
    sums: Any = lab.redis.hmget(lab.keys.agents, "team lab", "team default")
    assert sums == ["100", None]
    lab.redis.hset(lab.keys.pool, "closed_until_ms", 0)  # for the tests that come after
    lab.redis.hincrby(lab.keys.pool, "sequence", 1)
