"""Clients that send slowly, too much, or nothing: closed in time, others served meanwhile."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from broker.http.slow_clients import HEAD_BYTES, REQUEST_S
from tests.api.brokers import GRANTING, Broker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

ORIGIN = "https://dash.example"


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    here = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "slow"}
    with Broker(**here, GPU_BROKER_CORS_ORIGINS=f"{ORIGIN}, https://b.example") as broker:
        yield broker.wait()


def connect(broker: Broker, first: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", broker.port))
    connection.sendall(first)
    connection.settimeout(0.2)
    return connection


def closed(connection: socket.socket) -> bool:
    """Return whether the other end has closed it."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_slow_requests_cost_nobody_else_anything(broker: Broker) -> None:
    """Slow requests of three kinds, on 200 connections, are closed; others are answered at once."""
    starts = (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
              b"POST /lease HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")  # fmt: skip
    with ExitStack() as stack:
        began = time.monotonic()
        slow = [stack.enter_context(connect(broker, starts[n % 3])) for n in range(200)]
        while time.monotonic() - began < REQUEST_S - 2:
            for connection in slow[1::3]:
                with suppress(OSError):
                    connection.sendall(b"a")
            asked = time.monotonic()
            assert broker.http.get("/health").status_code == 200
            assert time.monotonic() - asked < 1
            time.sleep(0.5)
        assert not any(closed(connection) for connection in slow[:3])
        time.sleep(3)
        for connection in slow:
            assert closed(connection)
        assert time.monotonic() - began < REQUEST_S + 10


def test_head_without_end_is_cut_off(broker: Broker) -> None:
    """A header of a megabyte, or a thousand of them, is not collected."""
    for line in (b"a" * 1_000_000, b"X-Header: value\r\n" * 60_000):
        with connect(broker, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ") as connection:
            sent = 0
            with suppress(OSError):
                while sent < len(line):
                    sent += connection.send(line[sent : sent + 16_384])
                    time.sleep(0.001)
            assert closed(connection)
            assert sent < len(line)
    assert broker.http.get("/health").status_code == 200


def test_head_of_a_usual_length_is_read(broker: Broker) -> None:
    """Cookies and proxies make some kilobytes."""
    headers = {"X-Long": "a" * (HEAD_BYTES // 4)}
    assert broker.http.get("/health", headers=headers).status_code == 200


def test_connection_is_kept_for_the_next_request(broker: Broker) -> None:
    """Also when requests come in pieces, one after another."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(broker) as connection:
        for _ in range(5):
            for at in range(0, len(request), 7):
                connection.sendall(request[at : at + 7])
                time.sleep(0.002)
            connection.settimeout(2)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")


def test_request_that_waits_for_a_lease_is_not_slow(broker: Broker) -> None:
    """It was sent; that its answer takes longer than a request may is what it asked for."""
    held = broker.granted(min_memory_mb=900)
    began = time.monotonic()
    answer = broker.http.post(
        "/lease", json={"agent": "a", "min_memory_mb": 900, "wait_s": REQUEST_S + 1}, timeout=20
    )
    assert answer.status_code == 202
    assert time.monotonic() - began > REQUEST_S
    broker.release(held["token"])
    broker.release(answer.json()["token"])


def test_answers_carry_security_headers(broker: Broker) -> None:
    """Also those of errors."""
    for path in ("/health", "/policy", "/nowhere"):
        headers = broker.http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"


def test_cors_is_closed_but_for_named_origins(broker: Broker) -> None:
    """A page from elsewhere reads nothing; a named one may send its key."""
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    named = broker.http.options("/lease", headers={"Origin": ORIGIN} | ask)
    assert named.headers["Access-Control-Allow-Origin"] == ORIGIN
    other = broker.http.options("/lease", headers={"Origin": "https://evil.example"} | ask)
    assert "Access-Control-Allow-Origin" not in other.headers
    got = broker.http.get("/policy", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in got.headers
