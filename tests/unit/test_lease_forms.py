"""Forms of leasing in Python: a lease's own methods and block, `agent_sdk.lease`, decorators."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import agent_sdk
from agent_sdk import (
    AgentCapExceeded,
    AsyncLeaseClient,
    LeaseClient,
    LeaseError,
    LeaseLost,
    NoCapacity,
    NotGrantedInTime,
    Store,
)
from agent_sdk.errors import HostUnknown, error_for, in_time
from agent_sdk.renewal import reminders
from tests.stores import until
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent_sdk import AsyncLease, Lease
    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=1, memory_mb=1000)

WHOLE: Any = {"memory_mb": 1000, "exclusive": True}


@pytest.fixture
def client(pool: TestBroker) -> Iterator[LeaseClient]:
    """A client, and the environment that names its pool; nothing is left when a test is over."""
    with pool.environment(), LeaseClient(Store(pool.url), hostname=pool.host) as client:
        yield client
        until(lambda: client.reap() and not client.leases() and not client.queue(), 5)


@pytest.fixture
async def tasks(client: LeaseClient, pool: TestBroker) -> AsyncIterator[AsyncLeaseClient]:
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as tasks:
        yield tasks


def agents(client: LeaseClient) -> list[str]:
    return [lease.agent for lease in client.leases()]


def test_lease_renews_and_releases_itself(client: LeaseClient) -> None:
    """The client does it for the lease."""
    lease = client.acquire("me", memory_mb=100)
    assert lease.renew() <= 30
    assert lease.renew(120) > 60
    assert lease.release()
    assert not lease.release()
    with pytest.raises(LeaseLost):
        lease.renew()


async def test_async_lease_renews_and_releases_itself(tasks: AsyncLeaseClient) -> None:
    """The same, awaited."""
    lease = await tasks.acquire("me", memory_mb=100)
    assert await lease.renew(120) > 60
    assert await lease.release()


def test_acquired_lease_is_a_block(client: LeaseClient) -> None:
    """Renewed inside, released at the end, also by an error; entered once."""
    lease = client.acquire("me", memory_mb=100, ttl_s=4)

    def work() -> None:
        with lease as same:
            assert same is lease
            until(lambda: lease.expires_at_ms > lease.granted_at_ms + 4100)
            with pytest.raises(RuntimeError, match="entered once"), lease:
                pass
            assert agents(client) == ["me"]
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert lease.released
    assert not client.leases()
    with pytest.raises(LeaseLost, match="released"), lease:
        pass


def test_acquired_lease_in_an_exit_stack(client: LeaseClient) -> None:
    """An exit stack asks the class for its methods."""
    with contextlib.ExitStack() as stack:
        lease = stack.enter_context(client.acquire("me", memory_mb=100))
        assert agents(client) == ["me"]
    assert lease.released


def test_block_of_a_lease_that_is_over_is_refused(client: LeaseClient) -> None:
    """Released, or revoked meanwhile."""
    released, revoked = (client.acquire("me", memory_mb=100) for _ in range(2))
    released.release()
    client.revoke(revoked.token, force=True)
    with pytest.raises(LeaseLost):
        revoked.renew()
    for lease in (released, revoked):
        assert not lease.release()
        with pytest.raises(LeaseLost), lease:
            pytest.fail("the block was entered")


def test_lease_that_ends_in_its_block_ends_once(client: LeaseClient) -> None:
    """Given back by hand, or by another, inside a statement or a stack."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(client.acquire("me", memory_mb=100)).release()
    with client.acquire("me", memory_mb=100) as lease:
        assert lease.release()
    with client.acquire("me", memory_mb=100) as lease:
        client.release(lease.token)
        with pytest.raises(LeaseLost):
            lease.renew()
    with client.lease("me", memory_mb=100):
        pass
    assert not client.leases()
    assert not client._keeper._abandoned  # nothing is released a second time


async def test_acquired_async_lease_is_a_block(
    client: LeaseClient, tasks: AsyncLeaseClient
) -> None:
    """Renewed inside, released at the end."""
    async with await tasks.acquire("me", memory_mb=100) as lease:
        assert agents(client) == ["me"]
    assert lease.released
    assert not client.leases()


def test_lease_that_travelled_has_no_client(client: LeaseClient) -> None:
    """Unpickled elsewhere it is a view, and says how to take it over."""
    with client.acquire("me", memory_mb=100) as lease:
        code = (
            "import pickle, sys; lease = pickle.load(sys.stdin.buffer)\n"
            "for act in (lease.release, lease.renew, lease.__enter__):\n"
            "    try: act()\n"
            "    except Exception as error: print(type(error).__name__, 'adopt' in str(error))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(lease), capture_output=True, check=True
        )
        assert done.stdout.decode().split("\n") == [*["BadRequest True"] * 3, ""]
        assert agents(client) == ["me"]


def test_forked_child_leaves_the_block_to_its_parent(client: LeaseClient) -> None:
    """The child ends the same statement, and gives nothing back."""
    child = -1
    with client.acquire("me", memory_mb=100) as lease:
        child = os.fork()
    if child == 0:
        os._exit(0 if lease.is_view else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forked_child_ends_the_block_before_its_parent(client: LeaseClient) -> None:
    """The lease is still there when the child has left the block."""
    with client.acquire("me", memory_mb=100) as lease:
        child = os.fork()
        if child == 0:
            try:
                lease.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert agents(client) == ["me"]
    assert not client.leases()


def test_wait_in_vain_is_a_timeout(client: LeaseClient) -> None:
    """With `wait_s`, and only then; the class of the reason stays."""
    with client.lease("holder", **WHOLE):
        with pytest.raises(NoCapacity) as refused:
            client.acquire("me", **WHOLE)
        assert not isinstance(refused.value, TimeoutError)
        with pytest.raises(TimeoutError) as late:
            client.acquire("me", wait_s=0.05, **WHOLE)
        assert isinstance(late.value, NotGrantedInTime)
        assert isinstance(late.value, NoCapacity)
        assert late.value.code == "no_capacity"


async def test_wait_in_vain_is_a_timeout_in_asyncio(tasks: AsyncLeaseClient) -> None:
    """Also where it is the agent's cap that was in the way."""
    await tasks.set_policy(max_memory_per_agent_mb=256)
    async with tasks.lease("me", memory_mb=256):
        with pytest.raises(NotGrantedInTime) as late:
            await tasks.acquire("me", memory_mb=100, wait_s=0.05)
    await tasks.set_policy(max_memory_per_agent_mb=1048576)
    assert isinstance(late.value, AgentCapExceeded)


@pytest.mark.parametrize(
    "error",
    [
        error_for("no_capacity", token="t", retry_after_s=3.0),
        in_time(NoCapacity("no_capacity", retry_after_s=2.0)),
        in_time(AgentCapExceeded("agent_cap", "own words")),
        HostUnknown.of("gpu1", "gpu1.lan"),
        error_for("outcome_unknown", token="t"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: LeaseError) -> None:
    """A pool of processes hands its worker's error on as it was."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


def test_lease_that_nothing_renews_is_logged_once(
    client: LeaseClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the renewing thread, long before its end."""
    monkeypatch.setattr(reminders, "PART", 0.99)
    monkeypatch.setattr(reminders, "LONGEST_S", 60)
    later, lease = (client.acquire(name, memory_mb=100, ttl_s=s) for name, s in LATER_FIRST)
    until(lambda: "of forgotten ends in" in caplog.text)
    assert not lease.lost
    client._keeper._reminders.tell(lease.trusted_until)
    assert caplog.text.count("nothing renews it") == 1
    for each in (lease, later):
        each.release()


LATER_FIRST = (("later", 600), ("forgotten", 30))
"""Leases of which the first makes the thread wait for longer than the second may."""


def test_leases_that_need_no_reminder_are_not_logged(
    client: LeaseClient, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is kept, renewed by hand, released, handed on, without an end, or of a block."""
    held = [client.acquire(f"held-{n}", memory_mb=100, ttl_s=n and 30) for n in range(4)]
    client.keep(held[1])
    held[2].renew(60)
    held[3].release()
    handed_on = client.acquire("handed-on", memory_mb=100).token
    with client.lease("block", memory_mb=100) as lease:
        client._keeper._reminders.tell(lease.trusted_until + 100)
    assert "nothing renews it" not in caplog.text
    assert client._keeper._reminders.first_at() is None
    for each in (*held, handed_on):
        client.release(each)


def test_clients_of_others_and_of_commands_are_not_reminded(
    pool: TestBroker, client: LeaseClient
) -> None:
    """Their holders are elsewhere, and renew by the token: not even a thread is started."""
    with LeaseClient(Store(pool.url), hostname=pool.host, for_others=True) as broker:
        lease = broker.acquire("over-http", memory_mb=100, ttl_s=1)
        assert broker._keeper._thread is None
        broker.release(lease)


def test_module_function_is_a_block(client: LeaseClient) -> None:
    """A block of the environment's pool, without a client of one's own."""
    with agent_sdk.lease("me", memory_mb=100) as lease:
        assert agents(client) == ["me"]
    assert lease.released
    with contextlib.ExitStack() as stack:
        stack.enter_context(agent_sdk.lease("stack", memory_mb=100))
        assert agents(client) == ["stack"]
    block = agent_sdk.lease("me", memory_mb=100)
    with block, pytest.raises(RuntimeError, match="entered once"), block:
        pass


async def test_module_function_is_an_async_block(client: LeaseClient) -> None:
    """The same object, for `async with`."""
    async with agent_sdk.lease("me", memory_mb=100) as lease:
        assert agents(client) == ["me"]
    assert lease.released
    await agent_sdk.shared.shared_async_client().close()


def test_decorated_function_has_a_lease_for_each_call(client: LeaseClient) -> None:
    """A parameter `lease` is given it, and is no parameter for callers."""

    @agent_sdk.lease("shared", memory_mb=100)
    def one(x: int, lease: Lease | None = None) -> tuple[int, str]:
        """Say what holds."""
        assert lease is not None
        return x, lease.token

    @client.lease("own", memory_mb=100)
    def two() -> list[str]:
        return agents(client)

    first, second = one(1), one(x=2)
    assert (first[0], second[0]) == (1, 2)
    assert first[1] != second[1]
    assert two() == ["own"]
    assert not client.leases()
    assert one.__doc__ == "Say what holds."
    assert list(inspect.signature(one).parameters) == ["x"]


async def test_decorated_coroutine_function_holds_while_it_runs(
    client: LeaseClient, tasks: AsyncLeaseClient
) -> None:
    """Not only until its coroutine is made."""

    @agent_sdk.lease("shared", memory_mb=100)
    async def one(lease: AsyncLease | None = None) -> list[str]:
        await asyncio.sleep(0)
        assert lease is not None
        return agents(client)

    @tasks.lease("own", memory_mb=100)
    async def two() -> list[str]:
        await asyncio.sleep(0)
        return agents(client)

    assert inspect.iscoroutinefunction(one)
    assert await one() == ["shared"]
    assert await two() == ["own"]
    assert not client.leases()
    await agent_sdk.shared.shared_async_client().close()


def test_each_event_loop_that_runs_has_a_client_of_its_own(client: LeaseClient) -> None:
    """Loops of several threads lease at once; that of a closed loop goes to the next one."""

    @agent_sdk.lease("shared", memory_mb=100)
    async def leased(together: threading.Barrier) -> AsyncLeaseClient:
        together.wait(20)  # the others hold theirs too
        return agent_sdk.shared.shared_async_client()

    async def closed(together: threading.Barrier) -> AsyncLeaseClient:
        found = await leased(together)
        await found.close()
        return found

    def run(together: threading.Barrier) -> AsyncLeaseClient:
        return asyncio.run(closed(together))

    alone, together = threading.Barrier(1), threading.Barrier(3)
    assert run(alone) is run(alone)
    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(run, [together] * 3))) == 3
    assert not client.leases()


def test_functions_whose_body_runs_after_the_call_are_refused(client: LeaseClient) -> None:
    """They would have no lease when they run."""

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def stream() -> AsyncIterator[int]:
        yield 1

    tasks: Any = AsyncLeaseClient(client.store)
    wrong: list[tuple[Any, Any]] = [
        (client.lease("me"), coroutine), (client.lease("me"), generator),
        (agent_sdk.lease("me"), generator), (agent_sdk.lease("me"), stream),
        (tasks.lease("me"), generator), (tasks.lease("me"), lambda: None),
    ]  # fmt: skip
    for block, function in wrong:
        with pytest.raises(TypeError, match="function"):
            block(function)


def test_module_function_follows_the_environment(
    client: LeaseClient, pool: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry reads it: a test's pool is not the one before it."""
    with agent_sdk.lease("me", memory_mb=100):
        pass
    before = agent_sdk.shared.shared_client()
    assert agent_sdk.shared.shared_client() is before
    monkeypatch.setenv("GPU_BROKER_HOSTNAME", "another")
    with pytest.raises(HostUnknown), agent_sdk.lease("me", memory_mb=100):
        pass
    assert agent_sdk.shared.shared_client() is not before


ENDS = """
import asyncio, os, threading, agent_sdk

def held():
    with agent_sdk.lease("generator", memory_mb=100, ttl_s=0):
        yield

async def main():
    async with agent_sdk.lease("task", memory_mb=100):
        pass

kept = held()
next(kept)
asyncio.run(main())
if (child := os.fork()) == 0:
    with agent_sdk.lease("child", memory_mb=100) as lease:
        os._exit(0 if not lease.is_view else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("end")
"""


def test_process_that_ends_gives_back_and_closes(client: LeaseClient) -> None:
    """A generator's block, an asyncio client of a loop that is over, and a fork in the middle."""
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    (child,) = client.leases()  # it ended by `os._exit`: its lease ends by its ttl
    assert child.agent == "child"
    client.release(child.token)


def test_local_lease_is_a_block_too(pool: TestBroker, tmp_path: Any) -> None:
    """A CPU lease of the caller's own, where the store is away."""
    away = LeaseClient(Store(f"unix://{tmp_path}/none.sock"), hostname=pool.host, deadline_s=0.1)
    with away.acquire("me", memory_mb=100, on_unavailable="cpu") as lease:
        assert lease.on_cpu
    assert lease.released
