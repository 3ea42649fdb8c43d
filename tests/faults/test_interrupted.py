"""Interrupted anywhere between before the call and after the block: nothing is left in the pool."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import agent_sdk
from agent_sdk import AsyncLeaseClient, GPUOrchestratorClient, LeaseClient, Store
from agent_sdk.shared import shared_client
from tests.api.brokers import GRANTING, Broker
from tests.faults.interrupts import Interrupt, Interrupted, logs
from tests.pools import device
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from tests.pools import Pool
    from tests.servers import Server

pytestmark = pytest.mark.filterwarnings(
    # A socket whose connecting was interrupted is closed by the garbage collector, and where the
    # interrupt strikes what the collector itself calls, Python only warns.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

SOAK = bool(os.environ.get("GPU_BROKER_SOAK"))

EVERY = 1 if SOAK else 41
"""Bytecodes from one interrupt to the next."""


class TimeLimit(Exception):
    """Error that a program's own time limit raises."""


@pytest.fixture
def client(server: Server, pool: Pool) -> Iterator[LeaseClient]:
    """One device of 1000 MiB."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    with LeaseClient(Store(server.url), pool=pool.keys.pool_name, hostname="h1") as client:
        warm = client.acquire("warm", memory_mb=1)
        client.keep(warm)
        client.release(warm)
        yield client


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what a test left unclosed while its warnings are ignored; nothing is handled."""
    yield
    gc.collect()
    assert sys.exception() is None


def nothing_left(client: LeaseClient) -> bool:
    return not client.leases() and not client.queue()


def at_every_step(story: Callable[[], object], again: int = 0) -> int:
    """Run a story once per step that it has, interrupted there; how often it was."""
    with Interrupt(0) as whole:
        story()
    struck = 0
    for at in range(random.randrange(EVERY) + 1, whole.steps + 1, EVERY):
        try:
            with Interrupt(at, again):
                story()
        except Interrupted:
            struck += 1
    assert struck > whole.steps / EVERY / 2
    return struck


def test_block_interrupted_at_every_step_leaves_no_lease(client: LeaseClient) -> None:
    """A lease without expiry is given back, wherever entering or leaving was interrupted."""

    def story() -> None:
        with client.lease("me", memory_mb=1, ttl_s=0):
            pass

    at_every_step(story)
    until(lambda: nothing_left(client))
    assert not client._keeper._kept


def test_block_interrupted_twice_leaves_no_lease(client: LeaseClient) -> None:
    """The second interrupt comes while the first is cleaned up after."""

    def story() -> None:
        with client.lease("me", memory_mb=1, ttl_s=0):
            pass

    for again in (3, 17, 60):
        at_every_step(story, again + random.randrange(10))
    until(lambda: nothing_left(client))
    assert not client._keeper._kept


@pytest.mark.parametrize("again", [0, 11])
def test_release_that_is_not_waited_for_interrupted_at_every_step_leaves_no_lease(
    client: LeaseClient, again: int
) -> None:
    """Also in the call after it, which takes its answer. `again`: as below."""
    client.wait_release = False

    def story() -> None:
        with client.lease("me", memory_mb=1, ttl_s=0):
            pass
        client.lookup("t" * 32)

    at_every_step(story, again)
    until(lambda: nothing_left(client))
    until(lambda: not client._keeper._abandoned)
    assert not client._keeper._kept


def test_block_without_a_client_interrupted_at_every_step_leaves_no_lease(
    client: LeaseClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`agent_sdk.lease`: the statement keeps the guard of the block inside."""
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("GPU_BROKER_POOL", client.keys.pool_name)
    monkeypatch.setenv("GPU_BROKER_HOSTNAME", "h1")

    def story() -> None:
        with agent_sdk.lease("me", memory_mb=1, ttl_s=0):
            pass

    story()
    at_every_step(story)
    until(lambda: nothing_left(client))
    shared = shared_client()
    assert not shared._keeper._kept
    shared.close()


@pytest.mark.parametrize("again", [0, 3, 17])
def test_block_of_an_acquired_lease_interrupted_at_every_step(
    client: LeaseClient, again: int
) -> None:
    """The lease is its caller's before it is entered, and given back from then on.

    `again`: a second interrupt comes so many bytecodes later, while it is cleaned up.
    """

    def interrupted(at: int) -> tuple[int, bool]:
        lease = client.acquire("me", memory_mb=1, ttl_s=0)

        def story() -> None:
            with lease:
                pass

        with contextlib.suppress(Interrupted), Interrupt(at, again) as whole:
            story()
        entered = lease.released or not client.leases() or bool(client._keeper._abandoned)
        if not entered:
            assert lease not in client._keeper._kept
            client.release(lease)
        until(lambda: nothing_left(client))
        return whole.steps, entered

    steps, _ = interrupted(0)
    entered = [interrupted(at)[1] for at in range(1, steps + 1, max(1, EVERY // 8))]
    assert entered.count(True) > len(entered) / 2
    assert not client._keeper._kept


def test_acquire_and_its_block_interrupted_at_every_step_are_renewed_by_nobody(
    client: LeaseClient,
) -> None:
    """Between the grant and the block it ends by its ttl, as any lease of `acquire`."""

    def story() -> None:
        with client.acquire("me", memory_mb=1, ttl_s=1):
            pass

    at_every_step(story)
    assert not client._keeper._kept
    until(lambda: client.reap() and nothing_left(client))


def test_block_of_a_waiter_interrupted_at_every_step_leaves_no_place(client: LeaseClient) -> None:
    """Also while it waits in the queue, with the device given to it in the middle."""
    blocker = [client.acquire("blocker", memory_mb=900, ttl_s=0)]

    def wait(*_: object) -> None:
        client._inbox.wait = real  # type: ignore[method-assign] # once per story
        client.release(blocker.pop())

    real = client._inbox.wait

    def story() -> None:
        client._inbox.wait = wait  # type: ignore[method-assign] # the hint comes at once
        with client.lease("me", memory_mb=900, ttl_s=0, wait_s=30):
            pass

    with Interrupt(0) as whole:
        story()
    for at in range(random.randrange(EVERY) + 1, whole.steps + 1, EVERY):
        until(lambda: not client.queue())
        until(lambda: all(lease.agent == "blocker" for lease in client.leases()))
        for lease in client.leases():
            client.release(lease.token)
        blocker[:] = [client.acquire("blocker", memory_mb=900, ttl_s=0, wait_s=20)]
        with contextlib.suppress(Interrupted), Interrupt(at):
            story()
    client._inbox.wait = real  # type: ignore[method-assign] # for the other tests
    for lease in blocker:
        client.release(lease.token)
    until(lambda: nothing_left(client))


def test_acquire_keep_release_interrupted_at_every_step_are_renewed_by_nobody(
    client: LeaseClient,
) -> None:
    """A lease that Python lost between two calls ends by its ttl: no thread renews it."""
    held: list[Any] = []

    def story() -> None:
        while held:  # what a story before this one was interrupted with
            client.release(held[0])
            held.pop()
        held.append(client.acquire("me", memory_mb=1, ttl_s=1))
        client.keep(held[0])
        client.release(held[0])

    at_every_step(story)
    story()
    assert not client._keeper._kept
    until(lambda: client.reap() and nothing_left(client))


@pytest.mark.parametrize("verb", ["acquire", "exchange"])
def test_acquire_interrupted_at_every_step_leaves_no_lease(
    server: Server, pool: Pool, verb: str
) -> None:
    """A client's first one, without expiry: it starts the thread that reminds of it."""
    pool.report((device("D0"),), deadline_ms=86_400_000)

    def story() -> None:
        held: list[Any] = []
        with LeaseClient(Store(server.url), pool=pool.keys.pool_name, hostname="h1") as client:
            try:
                if verb == "acquire":
                    held.append(client.acquire("me", memory_mb=1, ttl_s=0))
                else:
                    held.append(client.exchange("a" * 32, "me", memory_mb=1, ttl_s=0))
            finally:
                for lease in held:
                    client.release(lease)

    story()  # what is made once for the process
    at_every_step(story)
    with LeaseClient(Store(server.url), pool=pool.keys.pool_name, hostname="h1") as client:
        until(lambda: nothing_left(client))


def test_child_interrupted_in_a_release_leaves_the_lease_to_its_parent(
    client: LeaseClient,
) -> None:
    """Ctrl-C goes to both: the child gives nothing back, at once or later."""
    with client.lease("me", memory_mb=1) as lease:
        for at in range(1, 140, 1 if SOAK else 9):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    with contextlib.suppress(Interrupted), Interrupt(at):
                        client.release(lease)
                    client.close()
                os._exit(0)
            os.waitpid(child, 0)
            assert client.renew(lease).remaining_ms > 0


def test_block_left_with_its_traceback_kept_gives_the_lease_back(client: LeaseClient) -> None:
    """An interrupt on the first step of leaving, whose traceback a notebook keeps for ever."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "call" and frame.f_code.co_name == "leave":
            raise Interrupted
        return None

    with pytest.raises(Interrupted) as kept, client.lease("me", memory_mb=1, ttl_s=0):
        sys.settrace(trace)
    sys.settrace(None)
    names = {frame.f_code.co_name for frame, _ in _walk(kept.value)}
    assert "leave" in names
    until(lambda: nothing_left(client))


def _walk(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


@pytest.mark.parametrize("by", [Interrupted, TimeLimit])
def test_block_struck_by_a_timer_at_any_moment_leaves_no_lease(
    client: LeaseClient, by: type[BaseException]
) -> None:
    """A real signal, at moments that lie some 5 µs apart (in `make test`, fewer of them)."""

    def handler(_: int, frame: FrameType | None) -> None:
        if armed and not logs(frame):
            raise by

    armed, before, struck = False, signal.signal(signal.SIGALRM, handler), 0
    try:
        for delay_us in range(30, 3000, 5 if SOAK else 45):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, delay_us / 1e6)
                with client.lease("me", memory_mb=1, ttl_s=0):
                    time.sleep(0.02)
            except by:
                struck += 1
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck > 10
    until(lambda: nothing_left(client))


def test_release_interrupted_while_the_store_is_silent_happens_when_it_answers(
    client: LeaseClient, server: Server
) -> None:
    """The renewing thread goes on with it, after a block and after a call by itself."""

    def handler(*_: object) -> None:
        raise Interrupted

    def block() -> None:
        with client.lease("block", memory_mb=1, ttl_s=0):
            admin.client_pause(600, all=True)
            signal.setitimer(signal.ITIMER_REAL, 0.2)

    alone = client.acquire("alone", memory_mb=1, ttl_s=0)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with server.connect() as admin:
            with pytest.raises(Interrupted):
                block()
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted):
                client.release(alone)
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: nothing_left(client))


def test_block_in_an_exit_stack_or_as_a_decorator_is_left_as_any_other(
    client: LeaseClient,
) -> None:
    """An exit stack asks the class for `__exit__`; a decorator enters one block per call."""
    with contextlib.ExitStack() as stack:
        lease = stack.enter_context(client.lease("stack", memory_mb=1))
        assert [held.token for held in client.leases()] == [lease.token]
    assert nothing_left(client)

    @client.lease("decorated", memory_mb=1)
    def work() -> int:
        return len(client.leases())

    assert (work(), work()) == (1, 1)
    assert nothing_left(client)


def test_block_is_entered_once_and_looking_at_it_gives_nothing_back(client: LeaseClient) -> None:
    """To ask an entered block for its `__exit__` does not end it."""
    block = client.lease("me", memory_mb=1)
    with block:
        assert hasattr(block, "__exit__")
        time.sleep(0.2)
        assert len(client.leases()) == 1
        with pytest.raises(RuntimeError, match="entered once"), block:
            pass
        assert len(client.leases()) == 1
    assert nothing_left(client)


def test_block_entered_by_hand_and_forgotten_is_given_back(client: LeaseClient) -> None:
    """Nothing can leave it any more, as with a generator's block."""
    client.lease("me", memory_mb=1, ttl_s=0).__enter__()
    until(lambda: nothing_left(client))


async def _cancelled_at_every_await(
    story: Callable[[], Any], again: int = 0, most: int = 5000
) -> None:
    """Cancel a story after so many turns of the loop, and perhaps a second time."""
    for turns in range(most):
        task = asyncio.create_task(story())
        for _ in range(turns):
            await asyncio.sleep(0)
        over = task.done()
        task.cancel()
        for _ in range(again):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if over and turns > 5:
            return


async def test_acquired_async_lease_cancelled_at_every_await_leaves_no_lease(
    server: Server, client: LeaseClient
) -> None:
    """Acquired, entered, held for a moment, left."""
    async with AsyncLeaseClient(
        Store(server.url), pool=client.keys.pool_name, hostname="h1"
    ) as tasks:

        async def block() -> None:
            async with await tasks.acquire("me", memory_mb=1, ttl_s=0):
                await asyncio.sleep(0)

        await _cancelled_at_every_await(block, 2)
        until(lambda: nothing_left(client))
        assert not tasks._keeper._kept


@pytest.mark.parametrize("again", [0, 1, 2, 5])
async def test_async_block_cancelled_at_every_await_leaves_no_lease(
    server: Server, client: LeaseClient, again: int
) -> None:
    """Entering, held for a moment, leaving; a second cancellation strikes the cleaning up."""
    async with AsyncLeaseClient(
        Store(server.url), pool=client.keys.pool_name, hostname="h1"
    ) as tasks:

        async def block() -> None:
            async with tasks.lease("me", memory_mb=1, ttl_s=0):
                await asyncio.sleep(0)

        await _cancelled_at_every_await(block, again)
        until(lambda: nothing_left(client))
        assert not tasks._keeper._kept


async def test_async_calls_cancelled_at_every_await_leave_nothing(
    server: Server, client: LeaseClient
) -> None:
    """Acquire that is granted at once, one that waits, and release."""
    async with AsyncLeaseClient(
        Store(server.url), pool=client.keys.pool_name, hostname="h1"
    ) as tasks:
        held: list[Any] = []

        async def release() -> None:
            held[:] = [await tasks.acquire("me", memory_mb=1, ttl_s=0)]
            tasks.keep(held[0])
            await tasks.release(held[0])

        await _cancelled_at_every_await(release)
        until(lambda: nothing_left(client))
        blocker = client.acquire("blocker", memory_mb=1000, ttl_s=0)

        async def wait() -> None:
            await tasks.acquire("me", memory_mb=1, ttl_s=0, wait_s=30)

        await _cancelled_at_every_await(wait, most=60)
        until(lambda: not client.queue())
        client.release(blocker)
        until(lambda: nothing_left(client))


def test_async_block_whose_loop_is_gone_is_given_back(server: Server, client: LeaseClient) -> None:
    """A coroutine that is closed after its loop has ended cannot wait for a release."""
    tasks = AsyncLeaseClient(Store(server.url), pool=client.keys.pool_name, hostname="h1")

    async def hold() -> None:
        async with tasks.lease("me", memory_mb=1, ttl_s=0):
            await asyncio.sleep(99)

    loop = asyncio.new_event_loop()
    task = loop.create_task(hold())
    until(lambda: loop.run_until_complete(asyncio.sleep(0.01)) or client.leases())
    coroutine = task.get_coro()
    loop.run_until_complete(tasks.redis.aclose())
    loop.close()
    coroutine.close()
    until(lambda: nothing_left(client))
    tasks._keeper.close()


@pytest.mark.parametrize("kind", ["function", "method", "object"])
def test_time_limit_that_raises_timeout_error_is_not_taken_for_the_stores(
    client: LeaseClient, server: Server, kind: str
) -> None:
    """The program hears of its limit at once, though redis-py has an error of the same kind."""

    class Limit:
        def strike(self, *_: object) -> None:
            raise TimeoutError("the program's own")

        __call__ = strike

    limit = Limit()
    handlers: dict[str, Any] = {
        "function": lambda *_: limit.strike(), "method": limit.strike, "object": limit,
    }  # fmt: skip
    before = signal.signal(signal.SIGALRM, handlers[kind])
    try:
        with server.connect() as admin:
            admin.client_pause(600, all=True)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimeoutError, match="the program's own"):
                client.acquire("me", memory_mb=1, ttl_s=0)
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: nothing_left(client))


@pytest.mark.parametrize("then", ["acquire", "pool", "close"])
def test_time_limit_while_the_answer_to_a_release_is_taken_is_not_taken_for_the_stores(
    client: LeaseClient, server: Server, then: str
) -> None:
    """Whichever call takes the answer: the program hears of its limit at once."""

    def handler(*_: object) -> None:
        raise TimeoutError("the program's own")

    calls: dict[str, Callable[[], object]] = {
        "acquire": lambda: client.acquire("me", memory_mb=1, ttl_s=0),
        "pool": client.pool,
        "close": client.close,
    }
    lease, before = client.acquire("me", memory_mb=1), signal.signal(signal.SIGALRM, handler)
    try:
        with server.connect() as admin:
            admin.client_pause(900, all=True)
            client._keeper._wakes_at = 0.0  # the renewing thread leaves the answer to this one
            client.release(lease, wait=False)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimeoutError, match="the program's own"):
                calls[then]()
    finally:
        signal.signal(signal.SIGALRM, before)
    client.keeper.hurry(lease.token)
    until(lambda: nothing_left(client))


def test_http_client_interrupted_at_every_step_leaves_no_lease(
    server: Server, client: LeaseClient
) -> None:
    """The lease of `GPUOrchestratorClient`, asked for and given back, as long as it is ours."""
    settings = {"GPU_BROKER_POOL": client.keys.pool_name, "GPU_BROKER_HOSTNAME": "h1"}
    with Broker(**GRANTING | settings, REDIS_URL=server.url) as broker:
        broker.wait()
        held: list[Any] = []
        asking = GPUOrchestratorClient(f"http://127.0.0.1:{broker.port}")

        def story() -> None:
            while held:  # what a story before this one was interrupted with
                asking.release(held[0])
                held.pop()
            held.append(asking.lease("me", 1, host="h1", ttl_s=1))
            asking.release(held[0])

        at_every_step(story)
        story()
        assert not asking._keeper._kept
        until(lambda: nothing_left(client))
        asking.close()
