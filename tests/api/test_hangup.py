"""Clients that hang up: a lease that no client knows of is given back; one line in the log."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import GRANTING, Broker, eventually
from tests.api.waits import Asking, waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


NAMED = "named-by-its-client"


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "hangup"}
    with Broker(**GRANTING | here) as broker:
        yield broker.wait()


@pytest.fixture(autouse=True)
def emptied(broker: Broker) -> Iterator[None]:
    """Each test begins without leases."""
    yield
    for token in broker.allocations():
        broker.release(token)


def request(extra: str = "", **body: Any) -> bytes:
    """POST /lease as bytes."""
    text = json.dumps({"agent": "gone", "min_memory_mb": 10} | body)
    return (
        f"POST /lease HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    ).encode()


@contextmanager
def asked(broker: Broker, extra: str = "", **body: Any) -> Iterator[socket.socket]:
    """A connection on which a lease was asked for; it is closed at the end."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as connection:
        connection.sendall(request(extra, **body))
        yield connection


def answered(connection: socket.socket) -> dict[str, Any]:
    """The answer, read whole."""
    got = b""
    while b"\r\n\r\n" not in got or not got.endswith(b"}"):
        got += connection.recv(65536)
    return dict(json.loads(got.partition(b"\r\n\r\n")[2]))


def arrived(connection: socket.socket) -> None:
    """Wait until the answer lies in our kernel, unread."""
    connection.recv(1, socket.MSG_PEEK)


@pytest.mark.parametrize("extra", ["", "Connection: close\r\n"])
@pytest.mark.parametrize("read", [0, 10])
def test_unread_answer_gives_its_lease_back(broker: Broker, extra: str, read: int) -> None:
    """The client closes while the answer, or most of it, lies unread in its kernel."""
    with asked(broker, extra) as connection:
        arrived(connection)
        assert len(broker.allocations()) == 1
        connection.recv(read) if read else None
    eventually(lambda: not broker.allocations(), 5)
    assert "hung up before it read of it: given back" in broker.said()


@pytest.mark.parametrize("extra", ["", "Connection: close\r\n"])
def test_client_that_closes_at_once_leaves_no_lease(broker: Broker, extra: str) -> None:
    """Whatever was first, the answer or the end of the connection."""
    before = broker.said().count(" lease status=")
    for _ in range(30):
        with asked(broker, extra):
            pass
    eventually(lambda: broker.said().count(" lease status=") == before + 30, 20)
    eventually(lambda: not broker.allocations(), 5)


def test_waiter_that_hangs_up_at_the_hand_over_leaves_no_lease(broker: Broker) -> None:
    """Between the grant and the answer, or after the answer and before it is read."""
    for after_s in (0, 0.001, 0.002, 0.004, 0.01):
        held = broker.granted(min_memory_mb=900)
        with asked(broker, min_memory_mb=900, wait_s=30):
            waits(broker, 1)
            broker.release(held["token"])
            time.sleep(after_s)
        eventually(lambda: not broker.allocations(), 5)
    assert "Traceback" not in broker.said()


@pytest.mark.parametrize("extra", ["", "Connection: close\r\n", "Connection: keep-alive\r\n"])
def test_answer_that_was_read_keeps_its_lease(broker: Broker, extra: str) -> None:
    """However its client closes afterwards, at once or by its timeout."""
    with asked(broker, extra) as connection:
        token = answered(connection)["token"]
    with asked(broker, extra) as connection:
        other = answered(connection)["token"]
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    time.sleep(0.5)
    assert broker.allocations().keys() == {token, other}


def test_lease_is_kept_when_a_proxy_resets_its_connection(broker: Broker) -> None:
    """HAProxy ends connections to servers so, after it has read the answer."""
    with asked(broker, "X-Forwarded-For: 192.0.2.7\r\n") as connection:
        token = answered(connection)["token"]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.5)
    assert broker.allocations().keys() == {token}


def test_named_token_is_the_clients_to_repeat(broker: Broker) -> None:
    """A client that names a token asks again with it when no answer came: it finds the lease."""
    with asked(broker, token=NAMED) as connection:
        arrived(connection)
    time.sleep(0.5)
    assert broker.granted(agent="gone", min_memory_mb=10, token=NAMED)["token"] == NAMED


def test_next_request_on_the_connection_confirms_the_answer(broker: Broker) -> None:
    """A client that asks again has read it: a reset later is no proof."""
    with asked(broker) as connection:
        token = answered(connection)["token"]
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        arrived(connection)
    time.sleep(0.5)
    assert token in broker.allocations()


def test_hang_up_is_one_line(broker: Broker) -> None:
    """A waiter that goes away is no error of ours."""
    held = broker.granted(min_memory_mb=900)
    before = len(broker.said().splitlines())
    with asked(broker, min_memory_mb=900, wait_s=30):
        waits(broker, 1)
    waits(broker, 0)
    lines = eventually(lambda: broker.said().splitlines()[before:], 5)
    assert [line for line in lines if "status=499" in line and "reason=hung_up" in line]
    assert "Traceback" not in broker.said()
    broker.release(held["token"])


def test_stop_answers_waiters_at_once(server: Server) -> None:
    """503 with Retry-After, no traceback, and the place of a client that named its token stays."""
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "stopping"}
    with Broker(**GRANTING | here) as broker:
        broker.wait()
        broker.granted(min_memory_mb=900)
        ask = {"min_memory_mb": 900, "wait_s": 30}
        waiting = [Asking(lambda: broker.lease(agent="a", **ask)),
                   Asking(lambda: broker.lease(agent="b", token=NAMED, **ask))]  # fmt: skip
        waits(broker, 2)
        broker.process.terminate()
        for each in waiting:
            each.join(10)
            assert each.answer is not None
            assert each.answer.status_code == 503
            assert each.answer.headers["Retry-After"] == "1"
            assert each.answer.json()["retryable"] is True
        assert broker.process.wait(20) == 0
        assert "timeout graceful shutdown exceeded" not in broker.said()
        assert "Traceback" not in broker.said()
    with server.connect() as redis:
        assert redis.exists(f"gpu:{{stopping}}:record:{NAMED}")
        assert redis.hget("gpu:{stopping}:pool", "waiting") == "1"
