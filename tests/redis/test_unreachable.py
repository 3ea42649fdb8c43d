"""A store that cannot be reached: what is wrong for good is said at once, the rest is tried again.

Nothing was sent while no connection stood, so it is never outcome_unknown.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import AsyncLeaseClient, BrokerUnavailable, LeaseClient, ProtocolMismatch, Store
from tests.api.brokers import PROGRAM, environment
from tests.reports import register
from tests.servers import binary, free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import Server

DEADLINE_S = 30.0
"""Seconds; a call that ends before them was not tried again."""

WHO = ["blocking", "asyncio"]


def run(url: str, who: str, deadline_s: float = DEADLINE_S) -> None:
    """Acquire by one of the clients, and close it."""

    async def asynchronous() -> None:
        client = AsyncLeaseClient(Store(url), hostname="h1", deadline_s=deadline_s)
        try:
            await client.acquire("a", memory_mb=10)
        finally:
            await client.close()

    if who == "asyncio":
        asyncio.run(asynchronous())
    else:
        with LeaseClient(Store(url), hostname="h1", deadline_s=deadline_s) as client:
            client.acquire("a", memory_mb=10)


def acquire(url: str, who: str, deadline_s: float = DEADLINE_S) -> tuple[BrokerUnavailable, float]:
    """Give how an acquire fails, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as told:
        run(url, who, deadline_s)
    return told.value, time.monotonic() - began


@contextmanager
def listener(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of something that does so with every connection."""
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def accept() -> None:
            while True:
                try:
                    connection, _ = sock.accept()
                except OSError:
                    return
                with connection:
                    behave(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield sock.getsockname()[1]
        sock.shutdown(socket.SHUT_RDWR)
    thread.join()


def hang_up(_: socket.socket) -> None:
    """Hang up, as a proxy whose server is away."""


def say_http(connection: socket.socket) -> None:
    """Answer as a web server."""
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://no-such-host.invalid", "no machine has that name"),
        ("redis+sentinel://no-such.invalid,nor-this.invalid/gpu", "no machine has that name"),
        ("redis+cluster://no-such.invalid,nor-this.invalid", "no machine has that name"),
        (f"unix:///tmp/{'x' * 110}", "the path of the socket is too long"),
        ("unix:///etc/passwd/redis.sock", "a part of the path is no folder"),
    ],
)
def test_address_that_cannot_be_right_is_an_error_at_once(url: str, says: str, who: str) -> None:
    """In words that say why, after one try."""
    told, seconds = acquire(url, who)
    assert (told.code, says in str(told)) == ("store_unavailable", True), told
    assert seconds < DEADLINE_S / 2


@pytest.mark.parametrize("who", WHO)
def test_what_answers_and_is_no_redis_is_said_at_once(who: str) -> None:
    """A web server at the port, say."""
    with listener(say_http) as port:
        told, seconds = acquire(f"redis://127.0.0.1:{port}", who)
    assert "what answers there is no Redis" in str(told)
    assert seconds < DEADLINE_S / 2


@pytest.mark.parametrize("who", WHO)
def test_tls_with_a_server_that_speaks_none_is_said_at_once(server: Server, who: str) -> None:
    """Redis is silent to it: the server is asked in plain words what it is."""
    told, seconds = acquire(f"rediss://127.0.0.1:{server.port}", who)
    assert "redis://, not rediss://" in str(told)
    assert seconds < DEADLINE_S / 2


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_tls_file_that_is_not_there_is_said_at_once(
    server: Server, tmp_path: Path, option: str, who: str
) -> None:
    """Not as a server that is away."""
    told, _ = acquire(f"rediss://127.0.0.1:{server.port}?{option}={tmp_path}/none.pem", who)
    assert option in str(told)


@pytest.mark.parametrize("who", WHO)
def test_server_that_restarts_is_waited_for(tmp_path: Path, who: str) -> None:
    """A refused port and a missing socket are tried until the deadline."""
    for url in (f"redis://127.0.0.1:{free_port()}", f"unix://{tmp_path}/redis.sock"):
        told, seconds = acquire(url, who, deadline_s=0.6)
        assert told.code == "store_unavailable"
        assert seconds > 0.2


@pytest.mark.parametrize("who", WHO)
def test_greeting_that_is_not_answered_is_not_an_unknown_outcome(who: str) -> None:
    """A proxy without its server hangs up before the call was sent."""
    with listener(hang_up) as port:
        told, seconds = acquire(f"redis://127.0.0.1:{port}", who, deadline_s=0.6)
    assert told.code == "store_unavailable"
    assert seconds > 0.2


@pytest.mark.parametrize("who", WHO)
def test_silence_to_the_greeting_is_not_an_unknown_outcome(who: str) -> None:
    """A server that accepts and hangs: nothing of the call was sent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert acquire(f"redis://127.0.0.1:{port}", who, deadline_s=0.6)[0].code == (
            "store_unavailable"
        )


@pytest.mark.parametrize("who", WHO)
def test_server_with_too_many_clients_is_not_an_unknown_outcome(who: str) -> None:
    """It says so to the greeting, and hangs up."""
    with running("redis", "--maxclients", "2") as full, full.connect() as first:
        first.ping()
        with full.connect() as second:
            second.ping()
            told, _ = acquire(full.url, who, deadline_s=0.6)
    assert (told.code, "max number of clients" in str(told)) == ("store_unavailable", True)


def test_name_that_is_gone_is_waited_for_once_the_store_has_answered(server: Server) -> None:
    """A client that was connected knows that the address is right: its DNS may come back."""
    client = LeaseClient(Store(server.url), hostname="h1", pool=f"p-{uuid4().hex[:8]}")
    client.pool()
    client.redis.connection_pool.disconnect()
    client.redis.connection_pool.connection_kwargs["host"] = "no-such-host.invalid"
    client.redis.connection_pool.reset()
    client.deadline_s = 0.6
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        client.pool()
    assert time.monotonic() - began > 0.2
    client.close()


def test_shell_gives_up_after_a_second_and_says_why() -> None:
    """69 and one sentence; what cannot be right is no server to start."""
    for url, says in (
        (f"redis://127.0.0.1:{free_port()}", "refused"),
        ("redis://no-such-host.invalid", "no machine has that name"),
    ):
        done = subprocess.run(
            [PROGRAM, "status"], env=environment(REDIS_URL=url), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 69
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "queue", "doctor", "run", "serve", "host"])
def test_option_that_is_not_allowed_ends_every_command_in_words(command: str) -> None:
    """By its name, before anything is connected; no traceback."""
    more = ("--", "true") if command == "run" else ()
    done = subprocess.run(
        [PROGRAM, command, *more], env=environment(REDIS_URL="redis://127.0.0.1:1/?foo=bar"),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in {1, 2}
    assert "an option foo that it cannot have" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_database_of_a_cluster_that_has_several() -> None:
    """Valkey 9 has databases in a Cluster; a Redis says that it has one alone, in words."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with running("valkey", *options, "--cluster-databases", "4") as valkey:
        subprocess.run(
            ["redis-cli", "-p", str(valkey.port), "cluster", "addslotsrange", "0", "16383"],
            check=True, capture_output=True,
        )  # fmt: skip
        url = f"redis+cluster://127.0.0.1:{valkey.port}/3"
        with LeaseClient(Store(url), hostname="h1", deadline_s=10) as client:
            register(client)
            assert client.acquire("a", memory_mb=10).memory_mb == 10
            assert client.redis.client_info()["db"] == 3


@pytest.mark.parametrize("who", WHO)
def test_database_that_is_not_there_is_said_in_words(server: Server, who: str) -> None:
    """Not as two versions that differ."""
    with pytest.raises(ProtocolMismatch, match="no database of the number"):
        run(f"{server.url}/99", who)


def test_server_without_lua_is_said_in_words() -> None:
    """A Valkey whose Lua module was unloaded."""
    with running("valkey", "--enable-module-command", "yes") as valkey, valkey.connect() as admin:
        if "lua" not in str(admin.execute_command("MODULE", "LIST")):
            pytest.skip(f"{binary('valkey')} has its Lua engine built in")
        admin.execute_command("MODULE", "UNLOAD", "lua")
        for who in WHO:
            with pytest.raises(ProtocolMismatch, match="no Lua engine"):
                run(valkey.url, who)
        done = subprocess.run(
            [PROGRAM, "doctor"], env=environment(REDIS_URL=valkey.url), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert "no Lua engine" in done.stdout
