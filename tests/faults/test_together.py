"""Calls of many threads that go together: each gets its own answer, and none waits for ever."""

from __future__ import annotations

import ctypes
import dis
import gc
import os
import random
import signal
import sys
import threading
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from agent_sdk import LeaseClient, Store
from agent_sdk.scripts import library as functions
from agent_sdk.store import together
from agent_sdk.store.together import MOST_APART, Together
from tests.faults.callers import living
from tests.pools import device
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from tests.pools import Pool
    from tests.servers import Server

THREADS = 5 * MOST_APART


@pytest.fixture(params=["", "&protocol=2", "unix"])
def client(request: pytest.FixtureRequest, server: Server, pool: Pool) -> Iterator[LeaseClient]:
    """Over two protocols and transports; one device."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    functions.load_own(pool.redis)
    url = server.socket_url if request.param == "unix" else server.url
    url += f"?client_name={pool.keys.pool_name}{request.param.replace('unix', '')}"
    with LeaseClient(Store(url), pool=pool.keys.pool_name, hostname="h1") as client:
        yield client
    assert living(pool) == set()


def in_threads(work: Callable[[int], object], number: int = THREADS) -> list[BaseException]:
    """Run work in many threads at once; return what they raised."""
    raised: list[BaseException] = []

    def run(mine: int) -> None:
        try:
            work(mine)
        except BaseException as error:  # noqa: BLE001 - returned
            raised.append(error)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def all_turns_are_back(client: LeaseClient) -> bool:
    """Return whether no thread of the client is on its way, and none waits."""
    crowd = client._pool._together._crowd
    return len(crowd._turns) == MOST_APART and not crowd._waiting


def test_each_thread_gets_its_own_lease_over_few_connections(
    client: LeaseClient, pool: Pool
) -> None:
    """Its own agent, size and fence, whichever call took it along."""
    fences: list[int] = []

    def work(mine: int) -> None:
        for turn in range(15):
            lease = client.acquire(f"agent-{mine}", memory_mb=1 + mine % 7)
            assert (lease.agent, lease.memory_mb) == (f"agent-{mine}", 1 + mine % 7)
            fences.append(lease.fence)
            if turn % 3:
                assert client.release(lease)
            else:
                assert client.release(client.exchange(lease, f"agent-{mine}", memory_mb=1))

    assert not in_threads(work)
    names = [each["name"] for each in pool.redis.client_list()]
    assert 1 <= names.count(pool.keys.pool_name) <= MOST_APART + 1
    assert len(set(fences)) == THREADS * 15
    assert all_turns_are_back(client)
    assert pool.stats()["granted"] == pool.stats()["released"] == THREADS * 20


def test_connections_that_are_cut_lose_and_double_no_call(
    client: LeaseClient, pool: Pool, server: Server
) -> None:
    """Every call of a crowd hears of it, and is repeated by its token."""
    done = threading.Event()

    def cut() -> None:
        with server.connect() as admin:
            while not done.wait(0.02):
                admin.client_kill_filter(_type="normal", skipme=True)

    def work(mine: int) -> None:
        for _ in range(10):
            assert client.release(client.acquire(f"agent-{mine}", memory_mb=1)) in (True, False)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        assert not in_threads(work)
    finally:
        done.set()
        cutter.join()
    assert all_turns_are_back(client)
    until(lambda: living(pool) == set())
    assert pool.stats()["granted"] == pool.stats()["released"] == THREADS * 10


def test_one_wrong_call_in_a_crowd_is_no_error_of_the_others(client: LeaseClient) -> None:
    """Refusals are answers: each thread has its own."""
    refused: list[int] = []

    def work(mine: int) -> None:
        for _ in range(10):
            if mine % 3:
                client.release(client.acquire("me", memory_mb=1))
            else:
                refused.append(
                    len(client.acquire("me", memory_mb=9999, on_unavailable="cpu").devices)
                )

    assert not in_threads(work)
    assert refused == [0] * len(refused)
    for lease in client.leases():
        client.release(lease.token)


@pytest.mark.filterwarnings(
    # as in `test_interrupted`
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_interrupt_of_the_main_thread_strikes_no_other(client: LeaseClient) -> None:
    """Ctrl-C while a crowd calls: the main thread's call alone is interrupted."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    raised: list[BaseException] = []
    ended, struck = threading.Event(), 0
    give_up_at = time.monotonic() + 30

    def work(_: int) -> None:
        turn = 0
        while turn < 20 or (not struck and time.monotonic() < give_up_at):
            client.release(client.acquire("me", memory_mb=1))
            turn += 1

    def crowd() -> None:
        raised.extend(in_threads(work))
        ended.set()

    before, thread = signal.signal(signal.SIGALRM, handler), threading.Thread(target=crowd)
    thread.start()
    try:
        while not ended.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            try:
                for _ in range(50):  # a signal in a finalizer is printed and strikes nothing
                    client.release(client.acquire("main", memory_mb=1, ttl_s=1))
            except KeyboardInterrupt:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        thread.join()
    assert struck
    assert not raised
    assert all_turns_are_back(client)
    until(lambda: client.reap() and not client.leases())
    gc.collect()


def test_child_forked_by_one_of_many_threads_calls_by_itself(client: LeaseClient) -> None:
    """The others' calls and turns stay with its parent."""
    codes: list[int] = []

    def work(mine: int) -> None:
        for turn in range(10):
            client.release(client.acquire("me", memory_mb=1))
            if mine == 0 and turn == 5:
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        client.release(client.acquire("child", memory_mb=1))
                        code = 0 if all_turns_are_back(client) else 2
                    finally:
                        os._exit(code)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert not in_threads(work)
    assert codes == [0]


class Wire:
    """Sender that answers each mark with itself, after a while; it fails when told."""

    def __init__(self) -> None:
        self.together = Together()
        self.crowds: list[int] = []
        self.fails: BaseException | None = None
        self.pause_s = 0.005
        self.first_wait_for = 0
        self.asks = 0

    def send(self, packed: bytes, marks: Sequence[str], _: float) -> list[Any]:
        assert packed.decode().split() == list(marks)
        self.crowds.append(len(marks))
        if len(self.crowds) <= MOST_APART:  # how many went along hangs on how soon they came
            self.asks += len({mark.rpartition("-")[0] or mark for mark in marks})
            until(self._all_have_come, every_s=0.001)
        time.sleep(self.pause_s)
        if self.fails is not None:
            raise self.fails
        return list(marks)

    def _all_have_come(self) -> bool:
        return len(self.together._crowd._waiting) + self.asks >= self.first_wait_for

    def ask(self, *marks: str) -> list[Any]:
        return self.together.ask(self.send, "".join(f"{m} " for m in marks).encode(), marks, 0.0)


def test_calls_of_several_commands_get_their_own_replies() -> None:
    """Crowds are cut where each call's replies end, and none goes alone that could go along."""
    wire = Wire()
    wire.first_wait_for = THREADS

    def work(mine: int) -> None:
        for turn in range(30):
            marks = [f"{mine}-{turn}-{n}" for n in range(1 + (mine + turn) % 3)]
            assert wire.ask(*marks) == marks

    assert not in_threads(work)
    assert max(wire.crowds) > MOST_APART
    assert len(wire.together._crowd._turns) == MOST_APART


def test_error_of_a_crowd_reaches_each_of_it_as_its_own() -> None:
    """Its kind and its words are the same; afterwards all go on."""
    wire = Wire()
    wire.fails = RedisConnectionError("gone")
    wire.first_wait_for = THREADS
    raised = in_threads(lambda mine: wire.ask(f"{mine}"))
    assert len(raised) == THREADS
    assert {(type(error), str(error)) for error in raised} == {(RedisConnectionError, "gone")}
    assert sum(wire.crowds) == THREADS
    assert MOST_APART < len(wire.crowds) <= 2 * MOST_APART
    assert len({id(error) for error in raised}) == THREADS - len(wire.crowds) + 1
    wire.fails = None
    assert not in_threads(lambda mine: wire.ask(f"{mine}"))
    assert len(wire.together._crowd._turns) == MOST_APART


def test_thread_that_is_stopped_in_the_middle_leaves_no_other_waiting() -> None:
    """An exception that another thread throws into it, wherever it stands."""
    wire = Wire()

    def work(mine: int) -> None:
        me = threading.get_ident()
        timer = threading.Timer(0.002 * (mine % 10), _throw, (me, Stopped))
        if mine % 2:
            timer.start()
        for turn in range(20):
            with suppress(RedisConnectionError):
                wire.ask(f"{mine}-{turn}")
        timer.cancel()

    raised = in_threads(work)
    assert all(isinstance(error, Stopped) for error in raised)
    assert not in_threads(lambda mine: wire.ask(f"{mine}"))
    assert len(wire.together._crowd._turns) == MOST_APART


def test_threads_that_are_stopped_at_any_step_leave_no_other_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a turn, or with calls that they have just taken: the others go on in a new crowd."""
    monkeypatch.setattr(together, "STUCK_S", 0.2)
    struck = 0
    for step in range(1 + random.randrange(3), 50, 3):
        wire, stops = Wire(), [Stop(step) for _ in range(MOST_APART + 1)]

        def work(mine: int, wire: Wire = wire, stops: Sequence[Stop] = stops) -> None:
            with stops[mine] if mine < len(stops) else nullcontext():
                for turn in range(20):
                    with suppress(RedisConnectionError):
                        assert wire.ask(f"{mine}-{turn}") == [f"{mine}-{turn}"]

        raised = in_threads(work, 3 * MOST_APART)
        assert {type(error) for error in raised} <= {Stopped}
        struck += len(raised)
        assert not in_threads(partial(_ask_until_answered, wire))
    assert struck > MOST_APART


def _ask_until_answered(wire: Wire, mine: int) -> None:
    for _ in range(3):
        with suppress(RedisConnectionError):
            assert wire.ask(f"{mine}") == [f"{mine}"]
            return
    raise AssertionError("no answer")


class Stopped(Exception):
    """Error that is thrown into a thread."""


class Stop:
    """Block in which this thread is stopped at the nth step of a crowd's code.

    Python throws another thread's exception where a function begins, after a call and at the end
    of a loop's turn.
    """

    AFTER = ("CALL", "RESUME", "JUMP_BACKWARD")

    def __init__(self, step: int) -> None:
        self._left = step
        self._last: dict[FrameType, str] = {}

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self._last.clear()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != together.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if self._last.get(frame) in self.AFTER:
                self._left -= 1
                if self._left == 0:
                    raise Stopped
            self._last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        return self._trace


def _throw(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
