"""A child that is forked under a lease: it sees its parent's, and gives nothing of it back."""

from __future__ import annotations

import asyncio
import copy
import gc
import multiprocessing
import os
import pickle
import select
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import AsyncLeaseClient, BadRequest, LeaseClient, LeaseLost, Store, fork
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_sdk import Lease
    from agent_sdk.testing import TestBroker


WHOLE: Any = {"memory_mb": 100, "exclusive": True}

CPU: Any = {"on_unavailable": "cpu"}

HUNG_S = 60
"""Seconds after which a child that says nothing is taken for hung, and killed."""


pool = broker_of_the_file(devices=1, memory_mb=1000)
"""One device of 1000 MiB."""


@pytest.fixture
def client(pool: TestBroker) -> Iterator[LeaseClient]:
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        yield client
        assert client.leases() == ()


def in_child(act: Callable[[], object]) -> object:
    """Give what an act returned in a forked child, which ends there and then."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "wb") as out:
            try:
                said = act()
            except BaseException as error:  # noqa: BLE001 - told to the parent
                said = repr(error)
            out.write(pickle.dumps(said))
            out.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        if not select.select([told], [], [], HUNG_S)[0]:
            os.kill(child, signal.SIGKILL)
        said = told.read()
    os.waitpid(child, 0)
    return pickle.loads(said)


@pytest.mark.parametrize("way", [None, SystemExit(0), ValueError("in the worker")])
@pytest.mark.parametrize("deep", [1, 2])
def test_child_that_leaves_the_block_gives_nothing_back(
    client: LeaseClient, way: BaseException | None, deep: int
) -> None:
    """By its end, sys.exit or an exception; a child's child too. The parent holds on alone."""
    block = client.lease("parent", memory_mb=100, exclusive=True, ttl_s=1)
    lease = block.__enter__()

    def leave() -> object:
        left = block.__exit__(way and type(way), way, None)
        return bool(left), lease.lost, lease.trusted_s

    told = in_child(leave if deep == 1 else lambda: in_child(leave))
    assert told == (False, False, 0)
    assert [x.token for x in client.leases()] == [lease.token]
    assert not lease.wait_lost(1.3)
    block.__exit__(None, None, None)


def test_child_of_another_thread_gives_nothing_back(client: LeaseClient) -> None:
    """A thread forks that took nothing, with the lease of another thread at hand."""
    with client.lease("parent", memory_mb=10) as lease:
        said: list[object] = []
        thread = threading.Thread(
            target=lambda: said.append(in_child(lambda: client.release(lease)))
        )
        thread.start()
        thread.join()
        assert said == [False]
        assert [x.token for x in client.leases()] == [lease.token]


def test_child_of_multiprocessing_sees_the_lease_and_closes_the_client(client: LeaseClient) -> None:
    """A worker uses what it inherited as its parent does, and the parent's goes on."""
    fork = multiprocessing.get_context("fork")
    said = fork.Queue()

    def work(lease: Lease) -> None:
        with client.lease("child", memory_mb=10) as own:
            said.put((lease.lost, lease.is_view, lease.env()["GPU_LEASE_TOKEN"], own.is_view))
        client.close()

    with client.lease("parent", memory_mb=10, ttl_s=1) as lease:
        worker = fork.Process(target=work, args=(lease,))
        worker.start()
        assert said.get(timeout=10) == (False, True, lease.token, False)
        worker.join(10)
        assert client.renew(lease).remaining_ms > 0  # on connections that the child did not cut
        assert not lease.wait_lost(1.5)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(BadRequest) as refused:
        act()
    return str(refused.value)


def test_child_is_told_in_words_what_it_may_not(client: LeaseClient) -> None:
    """To renew or keep a lease of its parent's is refused; when trust is over, it is told why."""
    with client.lease("parent", memory_mb=10, ttl_s=1) as lease:
        assert "adopt" in str(in_child(lambda: refusal(lambda: client.renew(lease))))
        assert "adopt" in str(in_child(lambda: refusal(lambda: client.keep(lease))))

        def outlive() -> str:
            assert lease.wait_lost(5)
            try:
                lease.raise_if_lost()
            except LeaseLost as lost:
                return str(lost)
            return ""

        assert "adopt" in str(in_child(outlive))
        assert not lease.lost


def test_child_that_adopts_takes_the_lease_over(client: LeaseClient) -> None:
    """It renews and releases it from then on; the parent hears of that."""
    with client.lease("parent", memory_mb=10, ttl_s=1) as lease:

        def take_over() -> tuple[bool, bool]:
            mine = client.adopt(lease.token)
            client.keep(mine)
            return mine.wait_lost(1.5), client.release(mine)

        assert in_child(take_over) == (False, True)
        assert lease.wait_lost(2)
        assert lease.lost_reason == "released"


def test_parents_place_in_the_queue_survives_a_child_of_a_signal_handler(
    client: LeaseClient,
) -> None:
    """A handler that forks while its thread waits: what the child throws leaves no line."""

    def fork(*_: object) -> None:
        child = os.fork()
        if child == 0:
            raise SystemExit
        os.waitpid(child, 0)
        seen.append(client.pool().waiting)
        client.release(held)

    seen: list[int] = []
    parent, held = os.getpid(), client.acquire("holder", **WHOLE)
    before = signal.signal(signal.SIGUSR1, fork)
    threading.Timer(0.3, signal.raise_signal, [signal.SIGUSR1]).start()
    try:
        lease = client.acquire("waiter", wait_s=20, **WHOLE)
    finally:
        if os.getpid() != parent:
            client.close()  # what it abandoned, if anything, is given back now
            os._exit(0)
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
    client.release(lease)


WAITS: Any = {"wait_s": 10} | WHOLE


async def waiting(client: AsyncLeaseClient, count: int) -> None:
    """Wait until so many wait in the queue."""
    for _ in range(500):
        if len(await client.queue()) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(await client.queue())


def test_child_waits_for_no_lock_of_the_parents_threads(client: LeaseClient) -> None:
    """A thread has every lock of every client at the fork: in the child nothing frees them."""
    client.release(client.acquire("parent", memory_mb=1))
    held, over = threading.Event(), threading.Event()
    kinds = (type(threading.Lock()), type(threading.RLock()))

    def hold() -> None:
        with ExitStack() as stack:
            for each in list(fork._known):
                for value in list(vars(each).values()):
                    if isinstance(value, kinds):
                        stack.enter_context(value)
            held.set()
            over.wait()

    def lease() -> bool:
        return client.release(client.acquire("child", memory_mb=1))

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        assert in_child(lease) is True
    finally:
        over.set()
        thread.join()


async def test_child_of_a_running_loop_is_told_what_it_needs(pool: TestBroker) -> None:
    """A loop of its own; then an inherited client works there, and the parent's goes on."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        async with client.lease("parent", memory_mb=100, exclusive=True, ttl_s=1) as lease:
            waiter = asyncio.create_task(client.acquire("waiter", **WAITS))
            await waiting(client, 1)

            async def own() -> tuple[object, ...]:
                async with client.lease("child", memory_mb=10, host="any", **CPU) as mine:
                    waits = asyncio.create_task(client.acquire("child", **WAITS))
                    await waiting(client, 2)
                    waits.cancel()
                    said = await client.release(lease), mine.lost
                await client.close()
                gc.collect()
                return said

            def orphan() -> object:
                try:
                    client.acquire("child", memory_mb=10).send(None)
                except RuntimeError as error:
                    return str(error)
                return None

            assert "asyncio.run" in str(in_child(orphan))
            assert in_child(lambda: asyncio.run(own())) == (False, False)
            assert not await lease.wait_lost(1.3)
        held = await waiter
        assert await client.release(held)


def test_lease_travels_as_a_view(client: LeaseClient) -> None:
    """Pickled, it is looked at elsewhere and not held; a copy here is held as the lease is."""
    with client.lease("parent", memory_mb=10) as lease:
        lease.on_lost(lambda _: None)
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(1) as workers:
            view = workers.apply(pickle.loads, (pickle.dumps(lease),))
            assert workers.apply(getattr, (lease, "is_view"))
            assert workers.apply(getattr, (lease, "lost")) is False
        assert not view.is_view
        for one in (copy.copy(lease), copy.deepcopy(lease), view):
            assert (one.is_view, one.lost, one.token) == (False, False, lease.token)
    with pytest.raises(TypeError, match="make another"):
        pickle.dumps(client)
