"""LeaseClient and AsyncLeaseClient against a real store."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import (
    AsyncLeaseClient,
    BadRequest,
    BrokerUnavailable,
    Conflict,
    Lease,
    LeaseClient,
    LeaseError,
    LeaseLost,
    NeverFits,
    NoCapacity,
    OutcomeUnknown,
    SafeMode,
    Store,
)
from agent_sdk.clock import local_now
from tests.stores import until
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=2, memory_mb=1000)
"""Two devices of 1000 MiB on one host."""


def test_both_clients_have_the_same_names_and_parameters() -> None:
    """Each verb of one client is a verb of the other, with the same words."""

    def surface(kind: type) -> dict[str, list[str]]:
        members = inspect.getmembers(kind, inspect.isfunction)
        return {n: list(inspect.signature(f).parameters) for n, f in members if n[0] != "_"}

    assert surface(LeaseClient) == surface(AsyncLeaseClient)


def test_lease_block_holds_renews_and_releases(client: LeaseClient) -> None:
    """The block holds a lease for longer than its ttl and gives it back at its end."""
    with client.lease("analyst", memory_mb=900, ttl_s=1) as lease:
        assert lease.devices[0].host == "test-host"
        assert lease.env()["CUDA_VISIBLE_DEVICES"] == lease.devices[0].uuid
        time.sleep(1.6)
        assert not lease.lost
        assert 0 < lease.trusted_s <= 1
    assert client.leases() == ()
    assert not lease.lost
    assert lease.trusted_s == 0


def test_lease_block_that_raises_releases_and_keeps_the_error(client: LeaseClient) -> None:
    """The body's own error comes out, also when releasing fails."""
    with pytest.raises(RuntimeError, match="mine"), client.lease("analyst", memory_mb=10):
        raise RuntimeError("mine")
    assert client.leases() == ()


def test_acquire_without_keeping_ends_by_itself(client: LeaseClient) -> None:
    """A lease that nobody renews is lost here before the broker grants it anew."""
    lease = client.acquire("a", memory_mb=900, ttl_s=1)
    assert not lease.lost
    assert lease.wait_lost(2)
    assert lease.lost_reason == "expired"
    with pytest.raises(LeaseLost):
        lease.raise_if_lost()
    time.sleep(0.1)
    with pytest.raises(LeaseLost) as lost:
        client.renew(lease)
    assert lost.value.code == "expired"


def test_lease_released_by_another_is_told_at_the_next_renewal(client: LeaseClient) -> None:
    """on_lost is called once, in a thread of its own, with the reason at hand."""
    told: list[tuple[Lease, str]] = []
    with client.lease("analyst", memory_mb=10, ttl_s=1) as lease:
        lease.on_lost(lambda lost: told.append((lost, threading.current_thread().name)))
        assert client.release(lease.token)
        assert lease.wait_lost(1)
        assert lease.lost_reason == "released"
    until(lambda: told)
    assert told == [(lease, "gpu-lease-callback")]


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        ({"memory_mb": 1001}, NeverFits),
        ({"host": "nowhere"}, NeverFits),
        ({"memory_mb": 1.5}, BadRequest),
        ({"memory_mb": True}, BadRequest),
        ({"ttl_s": float("nan")}, BadRequest),
        ({"ttl_s": 0.5}, BadRequest),
        ({"host": "a/b"}, BadRequest),
        ({"token": "short"}, BadRequest),
        ({"priority": 10}, BadRequest),
        ({"placement": "best"}, BadRequest),
    ],
)
def test_acquire_that_cannot_be_says_so_by_its_class(
    client: LeaseClient, ask: dict[str, object], error: type[LeaseError]
) -> None:
    """Each refusal has a class of its own, and a code."""
    with pytest.raises(error):
        client.acquire("a", **ask)
    assert client.leases() == ()


def test_acquire_with_an_unknown_option_is_a_type_error(client: LeaseClient) -> None:
    """A misspelt option must not be taken for its default."""
    with pytest.raises(TypeError, match="memroy_mb"):
        client.acquire("a", memroy_mb=3)


def test_acquire_of_a_full_pool_raises_or_falls_back_as_asked(client: LeaseClient) -> None:
    """Without room: NoCapacity with a time to ask again, or a CPU lease that says why."""
    held = [client.acquire("a", memory_mb=900) for _ in range(2)]
    with pytest.raises(NoCapacity) as full:
        client.acquire("b", memory_mb=900)
    assert 0 < (full.value.retry_after_s or 0) <= 30
    cpu = client.acquire("b", memory_mb=900, on_unavailable="cpu")
    assert (cpu.on_cpu, cpu.reason, cpu.memory_mb, cpu.local) == (True, "no_capacity", 0, False)
    assert cpu.fence > held[1].fence > held[0].fence


def test_acquire_repeated_with_its_token_is_the_same_lease(client: LeaseClient) -> None:
    """The token is the idempotency key: same fence, never more than what is left."""
    began = time.monotonic()
    first = client.acquire("a", token="token-of-this-test", memory_mb=10)
    took_s = time.monotonic() - began  # as much later than it was sent it may have been granted
    time.sleep(0.05)
    again = client.acquire("a", token="token-of-this-test", memory_mb=10)
    assert (again.fence, again.expires_at_ms) == (first.fence, first.expires_at_ms)
    left_s = first.trusted_s
    assert again.trusted_s <= left_s + took_s + 0.01
    with pytest.raises(Conflict):
        client.acquire("a", token="token-of-this-test", memory_mb=11)


def test_release_before_acquire_refuses_the_late_acquire(client: LeaseClient) -> None:
    """An acquire that arrives after its release gets nothing."""
    assert not client.release("token-that-comes-late")
    with pytest.raises(LeaseLost):
        client.acquire("a", token="token-that-comes-late")


def test_acquire_in_safe_mode_is_refused_also_for_cpu(client: LeaseClient) -> None:
    """SAFE_MODE never falls back silently."""
    client.redis.hset(client.keys.pool, "safe_mode", 1)
    client.redis.hincrby(client.keys.pool, "sequence", 1)
    try:
        with pytest.raises(SafeMode):
            client.acquire("a", on_unavailable="cpu")
    finally:
        client.redis.hset(client.keys.pool, "safe_mode", 0)
        client.redis.hincrby(client.keys.pool, "sequence", 1)


def test_acquire_after_script_flush_loads_its_scripts_again(client: LeaseClient) -> None:
    """A server that lost its scripts costs one more round trip, and no lease."""
    with client.lease("a", memory_mb=10, ttl_s=3) as lease:
        client.redis.script_flush()
        time.sleep(3.2)
        assert not lease.lost
        client.redis.script_flush()
        assert client.acquire("b", memory_mb=10).fence > lease.fence


def test_acquire_without_a_store_says_what_to_do() -> None:
    """Nothing was done: BrokerUnavailable at once-ish, or a local CPU lease if asked."""
    client = LeaseClient(Store("unix:///nonexistent/s", timeout_s=0.2), deadline_s=0.3)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        client.acquire("a")
    local = client.acquire("a", on_unavailable="cpu")
    assert time.monotonic() - began < 2
    assert (local.local, local.on_cpu, local.fence, local.lost) == (True, True, 0, False)
    assert client.release(local)
    client.close()


def test_keeper_renews_many_leases_in_one_thread(client: LeaseClient) -> None:
    """Forty leases of a second each live on for two and a half, on one more connection."""
    leases = [client.acquire(f"agent-{n}", memory_mb=10, ttl_s=1) for n in range(40)]
    for lease in leases:
        client.keep(lease)
    time.sleep(2.5)
    assert not any(lease.lost for lease in leases)
    names = [t.name for t in threading.enumerate()]
    assert names.count("gpu-lease-keeper") == 1


def test_queue_reads_no_lease_that_goes_on(client: LeaseClient) -> None:
    """Only the waiter's record is read, however many leases there are."""
    held = [client.acquire("holder", memory_mb=900, ttl_s=600) for _ in range(2)]
    held += [client.acquire("holder", memory_mb=10, ttl_s=600) for _ in range(9)]
    ask: dict[str, Any] = {"memory_mb": 500, "wait_s": 20, "token": "waits-for-half-a-gpu"}
    waiter = threading.Thread(target=client.acquire, args=["waiter"], kwargs=ask)
    waiter.start()
    until(lambda: len(client.queue()) == 1)
    client.redis.config_resetstat()
    assert [each.agent for each in client.queue()] == ["waiter"]
    stats: Any = client.redis.info("commandstats")
    assert stats["cmdstat_hgetall"]["calls"] == 1
    for lease in held:
        client.release(lease)
    waiter.join(10)
    client.release(ask["token"])


async def test_async_lease_block_survives_a_blocked_event_loop(pool: TestBroker) -> None:
    """A computation that blocks the loop for longer than the ttl loses no GPU."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        async with client.lease("analyst", memory_mb=900, ttl_s=1) as lease:
            time.sleep(1.6)  # noqa: ASYNC251 - blocking the loop is what this test is about
            assert not lease.lost
        assert await client.leases() == ()


async def test_async_acquire_that_is_cancelled_leaves_no_lease(pool: TestBroker) -> None:
    """Cancelled at any moment, an acquire holds nothing afterwards."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        for step in range(40):
            task = asyncio.create_task(client.acquire("a", memory_mb=10))
            for _ in range(step % 8):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await client.release(await task)
        for _ in range(150):
            if not await client.leases():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(await client.leases())


async def test_async_lease_tells_its_loss_in_the_loop(pool: TestBroker) -> None:
    """on_lost runs in the event loop, wait_lost returns."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        told = asyncio.Event()
        async with client.lease("a", memory_mb=10, ttl_s=1) as lease:
            lease.on_lost(lambda _: told.set())
            await client.release(lease.token)
            assert await lease.wait_lost(1)
            assert lease.lost_reason == "released"
            await asyncio.wait_for(told.wait(), 1)


def test_acquire_with_a_token_of_the_callers_own_is_never_given_back_behind_its_back(
    pool: TestBroker,
) -> None:
    """After OutcomeUnknown the advised repeat gets the lease, and keeps it."""
    with LeaseClient(Store(pool.url, timeout_s=0.2), hostname=pool.host, deadline_s=0.3) as client:
        client.release(client.acquire("a", memory_mb=10))
        client.redis.client_pause(600)
        with pytest.raises(OutcomeUnknown):
            client.acquire("a", memory_mb=10, token="token-of-a-careful-one", ttl_s=60)
        time.sleep(0.8)
        lease = client.acquire("a", memory_mb=10, token="token-of-a-careful-one", ttl_s=60)
        time.sleep(0.8)
        assert [x.token for x in client.leases()] == [lease.token]
        client.release(lease)


def test_keeper_survives_a_callback_that_raises(client: LeaseClient) -> None:
    """One holder's faulty on_lost costs no other holder its lease."""
    with (
        client.lease("a", memory_mb=10, ttl_s=1) as first,
        client.lease("b", memory_mb=10, ttl_s=1) as other,
    ):
        first.on_lost(lambda _: 1 / 0)
        client.release(first.token)
        assert first.wait_lost(2)
        time.sleep(1.5)
        assert not other.lost
        with client.lease("c", memory_mb=10, ttl_s=1) as later:
            time.sleep(1.3)
            assert not later.lost


def test_keeper_tells_the_end_of_trust_when_it_comes(client: LeaseClient) -> None:
    """At max_hold_s renewals gain nothing: on_lost is called then, and nothing spins until then."""
    told = threading.Event()
    lease = client.acquire("a", memory_mb=10, ttl_s=30, max_hold_s=1)
    lease.on_lost(lambda _: told.set())
    client.keep(lease)
    used = time.process_time()
    assert told.wait(1.5)
    assert time.process_time() - used < 0.5


def test_keeper_takes_a_lease_that_has_little_left(client: LeaseClient) -> None:
    """A lease kept late in its ttl is renewed before it ends, not a third of a ttl later."""
    lease = client.acquire("a", memory_mb=10, ttl_s=3)
    time.sleep(2.3)
    client.keep(lease)
    time.sleep(1.2)
    assert not lease.lost


def test_keeper_learns_of_a_revocation_also_without_expiry(client: LeaseClient) -> None:
    """However long the ttl, the next renewal comes before a revoked lease is granted anew."""
    for ttl_s in (0, 600):
        lease = client.acquire("a", memory_mb=10, ttl_s=ttl_s)
        client.keep(lease)
        kept = client._keeper._kept[lease]
        assert kept.next_at - local_now() <= 15
        client.release(lease)


async def test_async_client_that_closes_gives_back_what_was_cancelled(pool: TestBroker) -> None:
    """Cancel and leave at once: nothing stays behind."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        for step in range(20):
            task = asyncio.create_task(client.acquire("a", memory_mb=10, ttl_s=0))
            for _ in range(step % 6):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await client.release(await task)
    with LeaseClient(Store(pool.url), hostname=pool.host) as after:
        assert after.leases() == ()
