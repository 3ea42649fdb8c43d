"""acquire: its token is the idempotency key. Once, twice, late, fifty times at once: one lease."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.pools import Pool, device, granted, said, token, uuids

if TYPE_CHECKING:
    from tests.servers import Server

T = token("t")


def test_acquire_repeated_is_the_same_lease(gpu: Pool) -> None:
    """The repeat answers the same device, fence and end, and takes nothing more."""
    first = gpu.acquire(T)
    before = gpu.stored()
    assert said(gpu.acquire(T)) == said(first)
    assert gpu.stored() == before


def test_acquire_repeated_later_tells_what_is_left(gpu: Pool) -> None:
    """remaining_ms shrinks with the pool's time: a repeat is not a renewal."""
    first = granted(gpu.acquire(T))
    for passed in (4000, 8000, 12000):
        gpu.live_on(4000)
        again = granted(gpu.acquire(T))
        assert again.remaining_ms == 30000 - passed
        assert (again.fence, again.expires_at_ms) == (first.fence, first.expires_at_ms)
    gpu.renew(T)
    assert granted(gpu.acquire(T)).remaining_ms == 30000


def test_acquire_repeated_by_another_process_of_the_agent_is_the_same_lease(gpu: Pool) -> None:
    """Client and pid say who called, not what was asked: the record keeps those of the grant."""
    first = granted(gpu.acquire(T))
    assert granted(gpu.acquire(T, client="another", pid="2:2")).fence == first.fence
    assert gpu.hash(f"record:{T}")["client"] == "client"


def test_acquire_repeated_after_the_policy_changed_is_the_same_lease(gpu: Pool) -> None:
    """Compared is what was asked, not what the policy made of it."""
    gpu.policy(default_memory_mb=300)
    first = granted(gpu.acquire(T, memory_mb=0))
    gpu.policy(default_memory_mb=200, safe_mode=1, max_memory_per_agent_mb=1)
    assert granted(gpu.acquire(T, memory_mb=0)).devices == first.devices == (("gpu-a", 300),)


def test_acquire_repeated_of_whole_devices_lists_them_in_the_same_order(pool: Pool) -> None:
    """The repeat of a lease on several devices says the same, word for word."""
    pool.report(tuple(device(f"gpu-{n}", 1000 + n, index=n) for n in range(5)))
    first = pool.acquire(T, devices=4)
    assert said(pool.acquire(T, devices=4)) == said(first)


@pytest.mark.parametrize(
    "other",
    [
        {"memory_mb": 901}, {"memory_mb": "0900"}, {"memory_mb": 0}, {"devices": 2},
        {"exclusive": 1}, {"ttl_ms": 30001}, {"max_hold_ms": 1}, {"priority": 1}, {"host": "h1"},
        {"model": "m1"}, {"placement": "pack"}, {"on_unavailable": "cpu"}, {"agent": "other"},
    ],
    ids=str,
)  # fmt: skip
def test_acquire_of_a_known_token_asking_otherwise_is_a_conflict(
    gpu: Pool, other: dict[str, Any]
) -> None:
    """A token names one request of one agent; any other is told so and changes nothing."""
    gpu.acquire(T)
    before = gpu.stored()
    assert said(gpu.acquire(T, **other)) == ["CONFLICT"]
    assert gpu.stored() == before


def test_acquire_after_release_is_lost(gpu: Pool) -> None:
    """A late duplicate of a released lease's acquire never grants again (S6)."""
    gpu.acquire(T)
    gpu.release(T)
    assert said(gpu.acquire(T)) == ["LOST", "released"]
    assert said(gpu.acquire(T, memory_mb=1, agent="other")) == ["LOST", "released"]
    assert gpu.free() == {"gpu-a": 1000}


def test_acquire_after_expiry_is_lost(gpu: Pool) -> None:
    """The duplicate of an expired lease's acquire never grants again (S4)."""
    gpu.acquire(T, ttl_ms=1000)
    gpu.skew(1000)
    assert granted(gpu.acquire(T, ttl_ms=1000)).remaining_ms == 0
    gpu.skew(1)
    for _ in range(2):
        assert said(gpu.acquire(T, ttl_ms=1000)) == ["LOST", "expired"]


def test_acquire_while_its_lease_cools_is_lost(pool: Pool) -> None:
    """On a real device the memory is withheld for a while; the lease is over all the same."""
    pool.report((device("gpu-a", 1000, simulated=0),))
    pool.acquire(T, ttl_ms=1000)
    pool.skew(1001)
    assert said(pool.acquire(T, ttl_ms=1000)) == ["LOST", "expired"]
    assert pool.number("gpu-a", "withheld_mb") == 900
    pool.live_on(6000)
    assert said(pool.acquire(T, ttl_ms=1000)) == ["LOST", "expired"]


def test_acquire_that_arrives_after_its_release_is_lost(gpu: Pool) -> None:
    """A release that overtook its acquire wins: nothing is granted to who has left already."""
    assert said(gpu.release(T)) == ["UNKNOWN"]
    assert said(gpu.acquire(T)) == ["LOST", "released"]
    assert gpu.free() == {"gpu-a": 1000}


def test_acquire_after_a_release_that_planted_nothing_is_granted(gpu: Pool) -> None:
    """plant=0 leaves no tombstone."""
    assert said(gpu.release(T, plant=0)) == ["UNKNOWN"]
    granted(gpu.acquire(T))


def test_acquire_on_a_full_pool_behind_a_backlog_is_told_to_ask_again(pool: Pool) -> None:
    """REFUSED is only final when nothing is left to take back."""
    pool.report((device("gpu-a", 1000),), deadline_ms=60000)
    for n in range(100):
        granted(pool.acquire(token(n), memory_mb=10, ttl_ms=3000))
    pool.skew(5000)
    for way in ("refuse", "cpu"):
        assert pool.acquire(T, memory_mb=1000, on_unavailable=way)[4:] == [1]
    assert pool.reap_all() == 5, "16 devices a call: 32 are back, 68 are left"
    assert granted(pool.acquire(T, memory_mb=1000)).devices == (("gpu-a", 1000),)
    assert pool.stats()["expired"] == 100


def test_acquire_behind_a_backlog_that_freed_enough_is_granted(pool: Pool) -> None:
    """Room that the call itself took back may be had at once."""
    pool.report((device("gpu-a", 1000),), deadline_ms=60000)
    for n in range(100):
        pool.acquire(token(n), memory_mb=10, ttl_ms=3000)
    pool.skew(5000)
    reply = pool.acquire(T, memory_mb=160)
    assert uuids(reply) == ["gpu-a"]
    assert reply[4] == 1, "more is over"


def test_acquire_at_the_agents_limit_behind_a_backlog_is_told_to_ask_again(pool: Pool) -> None:
    """The agent's own expired leases do not stand in its way."""
    pool.report((device("gpu-a", 1000),), deadline_ms=60000)
    pool.policy(max_leases_per_agent=100)
    for n in range(100):
        pool.acquire(token(n), memory_mb=1, ttl_ms=3000)
    pool.policy(max_leases_per_agent=1)
    pool.skew(5000)
    assert said(pool.acquire(T)) == ["AGAIN"]
    pool.reap_all()
    granted(pool.acquire(T))


def at_once(server: Server, pool: Pool, asks: list[dict[str, Any]]) -> list[list[Any]]:
    """The answers to calls made at the same moment, each on a connection of its own."""
    start = threading.Barrier(len(asks))

    def ask(how: dict[str, Any]) -> list[Any]:
        with server.connect() as client:
            twin = pool.twin(client)
            client.ping()
            start.wait(timeout=30)
            return twin.acquire(**how)

    with ThreadPoolExecutor(len(asks)) as threads:
        return list(threads.map(ask, asks))


def test_acquire_of_one_token_fifty_times_at_once_is_one_lease(server: Server, pool: Pool) -> None:
    """However many duplicates arrive together, one grant is made and all are told of it."""
    pool.report((device("gpu-a", 9000),))
    replies = at_once(server, pool, [{"token": T}] * 50)
    assert {granted(reply).fence for reply in replies} == {granted(replies[0]).fence}
    assert pool.free() == {"gpu-a": 8100}
    assert pool.stats() == {"granted": 1}


def test_acquire_by_twenty_at_once_where_one_fits_is_granted_to_one(
    server: Server, pool: Pool
) -> None:
    """900 MiB fit once on 1000, whoever comes first."""
    pool.report((device("gpu-a", 1000),))
    replies = at_once(server, pool, [{"agent": f"agent{n}"} for n in range(20)])
    tags = sorted(reply[0] for reply in replies)
    assert tags == ["GRANTED", *["REFUSED"] * 19]
    assert {reply[5] for reply in replies if reply[0] == "REFUSED"} == {"no_capacity"}
