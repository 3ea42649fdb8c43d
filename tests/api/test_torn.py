"""Requests that break off, come in crumbs, or are none: nothing is done by half."""

from __future__ import annotations

import json
import random
import socket
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import GRANTING, Broker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    here = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "torn"}
    with Broker(**here) as broker:
        yield broker.wait()


@pytest.fixture
def client(server: Server, broker: Broker) -> Iterator[LeaseClient]:
    """The pool behind it."""
    with LeaseClient(Store(server.url), pool="torn", hostname="h1") as client:
        yield client


def lease(token: str = "", head: str = "") -> bytes:
    """A request for 10 MiB."""
    body = json.dumps({"agent": "a", "min_memory_mb": 10, "token": token or str(uuid4())}).encode()
    length = head or f"Content-Length: {len(body)}"
    start = f"POST /lease HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}"
    return start.encode() + b"\r\n\r\n" + body


def exchange(broker: Broker, *parts: bytes, shut: bool = True) -> bytes:
    """Send these, end, and read whatever is answered."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
            if shut:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                said += chunk
                if not shut and b"}" in said:
                    break
        return said


def unharmed(broker: Broker) -> None:
    """It answers, and has nothing to be sorry for."""
    assert broker.http.get("/health").status_code == 200
    assert "Traceback" not in broker.said()


def test_request_that_breaks_off_does_nothing(broker: Broker, client: LeaseClient) -> None:
    """Cut at any byte, by a peer that is gone: no lease, and no error in the log."""
    whole, before = lease(), client.pool().stats.get("granted", 0)
    for end in range(1, len(whole), 3):
        with socket.create_connection(("127.0.0.1", broker.port)) as connection:
            connection.sendall(whole[:end])
            if end % 2:  # a reset, not a farewell
                linger = b"\1\0\0\0\0\0\0\0"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    unharmed(broker)
    assert client.pool().stats.get("granted", 0) == before
    assert client.leases() == ()


def test_request_in_crumbs_is_done_once(broker: Broker, client: LeaseClient) -> None:
    """Byte by byte, and two at once in one packet: each is answered, in its order."""
    tokens = [str(uuid4()) for _ in range(3)]
    crumbs = [bytes([byte]) for byte in lease(tokens[0])]
    said = exchange(broker, *crumbs, shut=False)
    said += exchange(broker, lease(tokens[1]), shut=False)
    assert said.startswith(b"HTTP/1.1 200")
    assert {x.token for x in client.leases()} == set(tokens[:2])
    torn = lease(tokens[2])
    exchange(broker, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + torn[:-1])
    assert {x.token for x in client.leases()} == set(tokens[:2])
    for token in tokens[:2]:
        client.release(token)
    unharmed(broker)


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nContent-Length: 500", "Content-Length: -1", "Content-Length: 1e3",
        "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked", "Transfer-Encoding: xchunked", "Content-Length: 0",
    ],
)  # fmt: skip
def test_request_of_no_clear_length_takes_nothing(
    broker: Broker, client: LeaseClient, head: str
) -> None:
    """A request that two servers would read differently is refused, or read as none."""
    said = exchange(broker, lease(head=head))
    assert not said.startswith(b"HTTP/1.1 200"), said
    assert b" 500 " not in said.partition(b"\r\n")[0]
    assert client.leases() == ()
    unharmed(broker)


def test_what_is_no_request_is_refused(broker: Broker, client: LeaseClient) -> None:
    """TLS, Redis, HTTP/2, spoilt requests: 4xx or the end of the connection, never a 500."""
    rng = random.Random(8014)
    spoilt = []
    for _ in range(150):
        text = bytearray(lease())
        for _ in range(rng.randint(1, 5)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        spoilt.append(bytes(text))
    others = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"*1\r\n$4\r\nPING\r\n", b"\0" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%00%ff%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /lease/" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]  # fmt: skip
    for text in spoilt + others:
        said = exchange(broker, text)
        assert b" 500 " not in said.partition(b"\r\n")[0], text
    unharmed(broker)
    for left in client.leases():  # a byte in the agent's name makes another name
        client.release(left.token)
