"""Strangers, which have no key: their cost, and the room that they leave to key holders."""

from __future__ import annotations

import resource
import socket
import threading
import time
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from broker.address_rate import Rate
from broker.http.auth import BURST
from broker.http.connection_limits import LEAST, ConnectionLimits
from broker.logs import STRANGERS_BURST, STRANGERS_PER_S
from tests.api.brokers import GRANTING, PROGRAM, Broker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

DESCRIPTORS = 256


@pytest.fixture(scope="module")
def broker(server: Server, key_file: Path, key: str) -> Iterator[Broker]:
    """With a key, and few descriptors."""
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "strangers"}
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, before[1]))
    try:
        settings = GRANTING | here | {"GPU_BROKER_KEYS_FILE": str(key_file)}
        started = Broker(program=(PROGRAM,), **settings)  # a forked one has limits of before
        limit = (DESCRIPTORS, DESCRIPTORS)
        resource.prlimit(started.process.pid, resource.RLIMIT_NOFILE, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with started as broker:
        broker.http.headers["Authorization"] = f"Bearer {key}"
        yield broker.wait()


def flood(broker: Broker, until: threading.Event) -> None:
    """Hold twice as many silent connections as the broker has descriptors, anew when they end."""
    with ExitStack() as stack:
        held: list[socket.socket] = []
        while not until.is_set():
            for connection in held[:]:
                with suppress(BlockingIOError):
                    try:
                        gone = connection.recv(1) == b""
                    except ConnectionError:
                        gone = True
                    if gone:
                        connection.close()
                        held.remove(connection)
            while len(held) < 2 * DESCRIPTORS and not until.is_set():
                try:
                    connection = socket.create_connection(("127.0.0.1", broker.port), timeout=5)
                except OSError:
                    break
                connection.setblocking(False)
                held.append(stack.enter_context(connection))
            time.sleep(0.05)


def test_silent_connections_leave_room_for_key_holders(broker: Broker) -> None:
    """A holder asks on new connections, and a stream goes on, while strangers hold all they can."""
    token = broker.granted(min_memory_mb=10, ttl_s=60)["token"]
    headers = {"Authorization": broker.http.headers["Authorization"]}
    until = threading.Event()
    stream = HTTPConnection("127.0.0.1", broker.port, timeout=30)
    stream.request("GET", "/events", headers=headers)
    answer = stream.getresponse()
    flooding = threading.Thread(target=flood, args=(broker, until), daemon=True)
    flooding.start()
    try:
        time.sleep(1)
        renewed = 0
        for _ in range(20):
            with suppress(OSError), socket.create_connection(("127.0.0.1", broker.port), 5):
                pass  # one more without a key
            asking = HTTPConnection("127.0.0.1", broker.port, timeout=10)
            with suppress(OSError):
                asking.request("GET", f"/lease/{token}", headers=headers)
                renewed += asking.getresponse().status == 200
            asking.close()
        assert renewed >= 18
        broker.http.post("/release", json={"token": token})
        while b"event: released" not in (line := answer.readline()):
            assert line
    finally:
        until.set()
        flooding.join(20)
        stream.close()
    assert broker.http.get("/ready").status_code == 200


def test_requests_without_a_key_fill_no_log(broker: Broker) -> None:
    """However many there are: some lines, and how many were left out."""
    before, began = broker.said().count("no_route"), time.monotonic()
    statuses = []
    connection = HTTPConnection("127.0.0.1", broker.port, timeout=10)
    while statuses.count(503) < BURST:  # a busy machine sends them little faster than is let in
        assert time.monotonic() < began + 30
        connection.request("POST", "/x", headers={"X-Request-ID": "A" * 64})
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    assert set(statuses) == {401, 503}
    assert statuses.index(503) >= BURST / 2
    lines = STRANGERS_BURST + STRANGERS_PER_S * (time.monotonic() - began) + 2
    assert broker.said().count("no_route") - before <= lines
    asking = broker.http.post("/release", json={"token": "x" * 20})
    assert asking.status_code == 404  # a key holder is not slowed down


def test_garbage_fills_no_log(broker: Broker) -> None:
    """Bytes that are no HTTP are answered 400 and not logged."""
    before = len(broker.said())
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as connection:
            connection.sendall(b"\x16\x03\x01 garbage\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert "Invalid" not in broker.said()[before:]


class Pretended:
    """A connection, for a crowd."""

    def __init__(self) -> None:
        self.ended = False
        self.ours, self.theirs = socket.socketpair()

    def abort(self) -> None:
        self.ended = True

    def get_extra_info(self, _: str) -> socket.socket:
        return self.ours

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def connections() -> Iterator[list[Pretended]]:
    made = [Pretended() for _ in range(20)]
    yield made
    for connection in made:
        connection.close()


def test_oldest_silent_stranger_is_ended(connections: list[Pretended]) -> None:
    """One that has just sent something is spared; one with a key is never ended."""
    crowd = ConnectionLimits(LEAST)  # 8 strangers
    known, sent, *others = connections
    crowd.enter(known)  # type: ignore[arg-type] # a connection will do
    assert crowd.admit(known, "ann", shared=True)  # type: ignore[arg-type] # a connection will do
    crowd.enter(sent)  # type: ignore[arg-type] # a connection will do
    sent.theirs.sendall(b"GET")
    for other in others[:8]:
        crowd.enter(other)  # type: ignore[arg-type] # a connection will do
    assert [c.ended for c in (known, sent, *others[:3])] == [False, False, True, False, False]
    for gone in (others[0], sent):
        crowd.leave(gone)  # type: ignore[arg-type] # a connection will do


def test_one_key_may_not_take_all_the_room(connections: list[Pretended]) -> None:
    """Half of it at most where there are several; all of it where there is none."""
    crowd = ConnectionLimits(LEAST)  # 8 with a key
    admitted = [crowd.admit(c, "ann", shared=True) for c in connections[:6]]  # type: ignore[arg-type] # a connection will do
    assert admitted == [True] * 4 + [False] * 2
    assert crowd.admit(connections[6], "bob", shared=True)  # type: ignore[arg-type] # a connection will do
    crowd.leave(connections[0])  # type: ignore[arg-type] # a connection will do
    assert crowd.admit(connections[7], "ann", shared=True)  # type: ignore[arg-type] # a connection will do
    open_to_all = ConnectionLimits(LEAST)
    admitted = [open_to_all.admit(c, "", shared=False) for c in connections[:9]]  # type: ignore[arg-type] # a connection will do
    assert admitted == [True] * 8 + [False]


def test_rate_is_each_addresss_own() -> None:
    """A client that uses up its rate takes nothing of another; it comes back with time."""
    rate = Rate(3, 1000)
    assert [rate.allows("a") for _ in range(3)] == [True] * 3
    eventually(lambda: rate.allows("a"), 1)
    slow = Rate(3, 0.001)
    assert [slow.allows("a") for _ in range(4)] == [True] * 3 + [False]
    assert slow.allows("b")
