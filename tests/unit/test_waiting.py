"""Waiting through the clients: woken, ended, kept, and by which connections."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import (
    AsyncLeaseClient,
    BadRequest,
    LeaseClient,
    LeaseLost,
    NoCapacity,
    StillWaiting,
    Store,
)
from agent_sdk.protocol.lease import poll_s
from agent_sdk.protocol.messages import Moment
from agent_sdk.renewal.wakeups import EARLY, AsyncInbox, Inbox
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk.testing import TestBroker

WHOLE: dict[str, Any] = {"memory_mb": 900, "host": "any"}


pool = broker_of_the_file(devices=1, memory_mb=1000)
"""One device of 1000 MiB."""


def soon(true: Callable[[], bool], within_s: float = 5) -> None:
    """Wait until it is true."""
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def nobody_listens() -> bool:
    """No inbox is left of what ran before; one ends with its block of 3 s."""
    return not any(thread.name == "gpu-lease-inbox" for thread in threading.enumerate())


def test_waiter_is_woken_by_the_release(client: LeaseClient) -> None:
    """A blocked thread has the lease at once when the holder gives it back."""
    held = client.acquire("holder", **WHOLE)
    found = []

    def wait() -> None:
        found.append(client.acquire("next", wait_s=20, **WHOLE))

    thread = threading.Thread(target=wait)
    thread.start()
    soon(lambda: client.pool().waiting == 1)
    released = time.monotonic()
    client.release(held)
    thread.join(5)
    assert time.monotonic() - released < 0.5
    assert found[0].agent == "next"


def test_threads_that_call_first_at_once_are_woken(client: LeaseClient, pool: TestBroker) -> None:
    """A process has one id, whichever thread asks first: hints come by it."""
    for _ in range(5):
        held = client.acquire("holder", **WHOLE)
        with LeaseClient(Store(pool.url), hostname=pool.host) as other:
            together = threading.Barrier(8)

            def wait(number: int, caller: LeaseClient, start: threading.Barrier) -> None:
                start.wait()
                caller.release(caller.acquire(f"w{number}", wait_s=30, **WHOLE))

            threads = [
                threading.Thread(target=wait, args=(number, other, together)) for number in range(8)
            ]
            for thread in threads:
                thread.start()
            soon(lambda: client.pool().waiting == 8)
            released = time.monotonic()
            client.release(held)
            for thread in threads:
                thread.join(30)
            assert time.monotonic() - released < 2


async def test_waiting_task_is_woken_by_the_release(client: LeaseClient, pool: TestBroker) -> None:
    """A task has the same, and its event loop goes on meanwhile."""
    held = client.acquire("holder", **WHOLE)
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as other:
        task = asyncio.create_task(other.acquire("next", wait_s=20, **WHOLE))
        await asyncio.to_thread(soon, lambda: client.pool().waiting == 1)
        released = time.monotonic()
        client.release(held)
        await other.release(await task)
        assert time.monotonic() - released < 0.5


async def test_task_that_waits_after_all_were_cancelled_is_woken(
    client: LeaseClient, pool: TestBroker
) -> None:
    """The task that listens was cancelled with them, before it began."""
    held = client.acquire("holder", **WHOLE)
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as other:
        first = asyncio.create_task(other.acquire("first", wait_s=20, **WHOLE))
        while other._inbox._task is None:  # noqa: ASYNC110 - at the very turn at which it is made
            await asyncio.sleep(0)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        task = asyncio.create_task(other.acquire("next", wait_s=20, **WHOLE))
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.to_thread(
            soon, lambda: [waiter.agent for waiter in client.queue()] == ["next"]
        )
        await asyncio.sleep(0.2)
        released = time.monotonic()
        client.release(held)
        await other.release(await task)
        assert time.monotonic() - released < 0.5


def test_wait_that_ends_is_refused_in_time(client: LeaseClient) -> None:
    """NoCapacity after wait_s, neither before nor long after, and nothing is left."""
    client.acquire("holder", **WHOLE)
    began = time.monotonic()
    with pytest.raises(NoCapacity):
        client.acquire("next", wait_s=0.5, **WHOLE)
    assert 0.5 <= time.monotonic() - began < 1
    assert client.queue() == ()


def test_wait_that_ends_falls_back_to_the_cpu(client: LeaseClient) -> None:
    """With on_unavailable=cpu the end of the wait is a CPU lease of the broker's."""
    client.acquire("holder", **WHOLE)
    lease = client.acquire("next", wait_s=0.2, on_unavailable="cpu", **WHOLE)
    assert (lease.on_cpu, lease.local, lease.reason) == (True, False, "no_capacity")


def test_place_that_is_kept_is_taken_up_again(client: LeaseClient) -> None:
    """StillWaiting names token and place; asking again with the token goes on from there."""
    held = client.acquire("holder", **WHOLE)
    with pytest.raises(StillWaiting) as still:
        client.acquire("next", wait_s=0.1, keep_place=True, **WHOLE)
    assert (still.value.place, still.value.retryable) == (0, True)
    assert [waiter.token for waiter in client.queue()] == [still.value.token]
    client.release(held)
    lease = client.acquire("next", wait_s=5, token=still.value.token, **WHOLE)
    assert lease.token == still.value.token


@pytest.mark.parametrize("wait_s", [-1, float("nan"), float("inf"), "5", None])
def test_wait_that_is_no_time_is_a_bad_request(client: LeaseClient, wait_s: Any) -> None:
    """It says which argument, and nothing was asked."""
    with pytest.raises(BadRequest, match="wait_s"):
        client.acquire("next", wait_s=wait_s, **WHOLE)


def test_fifty_threads_share_one_inbox_and_are_served_in_order(
    client: LeaseClient, pool: TestBroker
) -> None:
    """One blocking connection for all; first come, first served."""
    soon(nobody_listens)
    held = client.acquire("holder", **WHOLE)
    served: list[int] = []

    def wait(number: int) -> None:
        with client.lease(f"w{number}", wait_s=30, **WHOLE):
            served.append(number)

    threads = []
    for number in range(50):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        soon(lambda n=number: client.pool().waiting == n + 1)  # type: ignore[misc] # mypy cannot type a lambda with a default
    with Store(pool.url).connect() as admin:
        listed: Any = admin.client_list()
    assert sum(c["cmd"] == "blmpop" for c in listed) == 1
    client.release(held)
    for thread in threads:
        thread.join(20)
    assert served == list(range(50))


def test_inbox_ends_with_its_last_waiter(client: LeaseClient) -> None:
    """No thread and no connection is left blocking for nobody."""
    client.acquire("holder", **WHOLE)
    with suppress(NoCapacity):
        client.acquire("next", wait_s=0.1, **WHOLE)
    soon(nobody_listens)


def test_forked_child_waits_on_an_inbox_of_its_own(client: LeaseClient) -> None:
    """A child has the names of its parent's threads and none of them: it starts its own."""
    held = client.acquire("holder", **WHOLE)
    with suppress(NoCapacity):
        client.acquire("parent", wait_s=0.05, **WHOLE)
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            client.acquire("child", wait_s=10, ttl_s=1, **WHOLE)
            code = 0
        os._exit(code)
    soon(lambda: client.pool().waiting == 1)
    client.release(held)
    assert os.waitpid(child, 0)[1] == 0


def time_out(client: LeaseClient) -> str:
    """Let the one that waits miss its heartbeat; its token."""
    (waiter,) = client.queue()
    client.redis.zadd(client.keys.deadlines, {waiter.token: 1})
    client.reap()
    return waiter.token


def test_place_that_timed_out_is_taken_anew(client: LeaseClient) -> None:
    """A waiter that was not heard of for 10 s joins the queue again, under another token."""
    held = client.acquire("holder", **WHOLE)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(client.acquire("next", wait_s=20, **WHOLE))
    )
    thread.start()
    soon(lambda: client.pool().waiting == 1)
    gone = time_out(client)
    soon(lambda: client.pool().waiting == 1, 6)
    client.release(held)
    thread.join(5)
    assert found[0].token != gone


def test_place_that_timed_out_under_a_token_of_ones_own_is_told(client: LeaseClient) -> None:
    """Such a token is the caller's to replace."""
    client.acquire("holder", **WHOLE)
    told: list[LeaseLost] = []

    def wait() -> None:
        try:
            client.acquire("next", wait_s=20, token="mine-and-nobody-elses", **WHOLE)
        except LeaseLost as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    soon(lambda: client.pool().waiting == 1)
    time_out(client)
    thread.join(6)
    assert [error.code for error in told] == ["timed_out"]


def test_hint_that_comes_early_is_not_lost(client: LeaseClient, pool: TestBroker) -> None:
    """An offer may be made before its waiter has read that it waits."""
    inbox = Inbox(Store(pool.url), client.keys.base)
    client.redis.rpush(f"{client.keys.base}:inbox:me", "other", "mine")
    began = time.monotonic()
    inbox.wait("me", "other", 5)
    inbox.wait("me", "mine", 5)
    assert time.monotonic() - began < 1


async def test_hint_that_comes_early_is_not_lost_in_a_loop(
    client: LeaseClient, pool: TestBroker
) -> None:
    """The same for tasks; and hints that nobody waits for do not pile up."""
    inbox = AsyncInbox(Store(pool.url), client.keys.base)
    client.redis.rpush(
        f"{client.keys.base}:inbox:us", *[f"x{n}" for n in range(EARLY + 50)], "mine"
    )
    began = time.monotonic()
    await inbox.wait("us", "x0", 5)
    await inbox.wait("us", "mine", 5)
    assert time.monotonic() - began < 1
    assert len(inbox._early) <= EARLY
    await inbox.close()


def test_first_asks_again_when_something_ends_and_others_later() -> None:
    """The head reaps what is over where no broker does; a thousand others do not come too."""
    moment = Moment(now_ms=1000, next_deadline_ms=2500, epoch="1", more=False)
    assert poll_s(moment, 0) == pytest.approx(1.502)
    assert poll_s(Moment(1000, 60_000, "1", False), -1) == 3
    assert poll_s(Moment(1000, None, "1", False), 0) == 3
    assert poll_s(Moment(1000, 500, "1", False), 0) == pytest.approx(0.25)
    times = [poll_s(moment, 1) for _ in range(100)]
    assert 6.5 <= min(times) < 7
    assert 8 < max(times) <= 8.5
