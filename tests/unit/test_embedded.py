"""The embedded store: processes that start, join and leave a server of one folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from agent_sdk.store import embedded
from agent_sdk.store.embedded import EmbeddedStore
from agent_sdk.store.server_binary import (
    ServerBinary,
    find_server,
)
from tests.unit.embedded import (
    User,
    open_client,
    servers_of,
    the_server_of,
    wait_until_gone,
    wheel_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def start_user(folder: Path) -> Iterator[Callable[[], User]]:
    with ExitStack() as stack:

        def start() -> User:
            user = User(folder)
            stack.callback(user.kill)
            return user

        yield start


def test_start_in_an_empty_folder_answers(folder: Path, server_binary: ServerBinary):
    """The first user gets a server of the chosen kind that takes writes."""
    store = EmbeddedStore(folder, server=server_binary)
    assert store.start_or_join() is True
    with open_client(store) as client:
        client.set("a", "1")
        assert client.get("a") == "1"
        assert ("valkey_version" in client.info("server")) == (server_binary.kind == "valkey")
    store.leave()


def test_start_again_by_the_same_user_counts_once(folder: Path):
    """A user that starts twice is one user: its one leave ends the server."""
    store = EmbeddedStore(folder)
    assert store.start_or_join() is True
    assert store.start_or_join() is False
    assert store.leave() is True
    assert servers_of(folder) == []


def test_join_from_a_second_process_finds_the_same_server(
    folder: Path, start_user: Callable[[], User]
):
    """A second process joins the running server and reads what the first wrote."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    pid = the_server_of(folder)
    second = start_user()
    assert second.said() == "joined"
    assert the_server_of(folder) == pid
    assert store.leave() is False
    assert second.leave() == "last"


def test_join_without_any_server_program_joins(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Joining a running server needs no server program."""
    first, second = EmbeddedStore(folder), EmbeddedStore(folder)
    first.start_or_join()
    monkeypatch.setattr(embedded, "find_server", None)
    assert second.start_or_join() is False
    assert first.leave() is False
    assert second.leave() is True


def test_leave_by_the_first_of_two_keeps_the_server(folder: Path, start_user: Callable[[], User]):
    """While one user is left, the starter's leave ends nothing; the last one's leave does."""
    store = EmbeddedStore(folder)
    assert store.start_or_join() is True
    other = start_user()
    assert other.said() == "joined"
    assert store.leave() is False
    with open_client(store) as client:
        assert client.ping()
    assert other.leave() == "last"
    wait_until_gone(folder)


def test_leave_by_the_last_ends_the_server_and_keeps_its_data(
    folder: Path, server_binary: ServerBinary
):
    """The last leave returns with the server gone, its socket too, and its data on disk."""
    store = EmbeddedStore(folder, server=server_binary)
    store.start_or_join()
    with open_client(store) as client:
        client.set("a", "1")
        client.hset("gpu:{default}:pool", mapping={"run_id": "old", "schema": "1"})
    assert store.leave() is True
    assert not store.socket.exists()
    assert not (folder / "redis.pid").exists()
    assert servers_of(folder) == []
    assert store.start_or_join() is True
    with open_client(store) as client:
        assert client.get("a") == "1"
        # After a clean stop nothing was lost: see broker.look in lua/lib/clock.lua.
        pool = client.hgetall("gpu:{default}:pool")
        assert int(pool.pop("sequence")) > 0  # nothing that a library kept of it counts
        assert pool == {"schema": "1"}
    store.leave()


def test_leave_by_nobody_changes_nothing(folder: Path):
    """Whoever never joined may leave, and ends nobody else's server."""
    user = EmbeddedStore(folder)
    user.start_or_join()
    assert EmbeddedStore(folder).leave() is False
    assert len(servers_of(folder)) == 1
    assert user.leave() is True
    assert user.leave() is False


def test_leave_after_the_server_died_is_the_last(folder: Path):
    """A user whose server was killed leaves at once, without an error."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    os.kill(the_server_of(folder), signal.SIGKILL)
    assert store.leave() is True


def test_join_after_sigkill_of_the_starter_finds_the_same_server(
    folder: Path, start_user: Callable[[], User]
):
    """SIGKILL of every user leaves the server answering; the next one joins and may end it."""
    starter = start_user()
    assert starter.said() == "started"
    pid = the_server_of(folder)
    starter.kill()
    assert the_server_of(folder) == pid
    later = EmbeddedStore(folder)
    assert later.start_or_join() is False
    assert the_server_of(folder) == pid
    assert later.leave() is True


def test_start_after_sigkill_of_the_server_has_the_data(folder: Path, server_binary: ServerBinary):
    """A killed server leaves a stale socket; the next start replaces it and reads the AOF."""
    store = EmbeddedStore(folder, server=server_binary)
    store.start_or_join()
    with open_client(store) as client:
        client.set("a", "1")
    time.sleep(1.1)
    os.kill(the_server_of(folder), signal.SIGKILL)
    wait_until_gone(folder)
    assert store.socket.exists()
    assert store.start_or_join() is True
    with open_client(store) as client:
        assert client.get("a") == "1"
    assert store.leave() is True


def test_start_by_the_other_kind_reads_the_data(folder: Path):
    """Installing the other server later, either way round, costs no data, rewritten AOF or not."""
    kinds = [find_server(), wheel_server()]
    for number, server in enumerate([*kinds, *kinds]):
        store = EmbeddedStore(folder, server=server)
        store.start_or_join()
        with open_client(store) as client:
            client.zadd("z", {"m": number})
            assert client.incr("starts") == number + 1
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)
        store.leave()


def test_start_by_eight_processes_makes_one_server(folder: Path, start_user: Callable[[], User]):
    """Eight processes start at once: one starts the server and seven join it."""
    users = [start_user() for _ in range(8)]
    assert sorted(user.said() for user in users) == ["joined"] * 7 + ["started"]
    assert len(servers_of(folder)) == 1
    assert sorted(user.leave() for user in users) == ["last"] + ["not last"] * 7
    wait_until_gone(folder)


def test_start_while_others_leave_always_answers(folder: Path):
    """Whoever has joined has a server until it leaves, however many come and go meanwhile."""
    failures: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(6):
                store = EmbeddedStore(folder)
                store.start_or_join()
                with open_client(store) as client:
                    client.incr("visits")
                store.leave()
        except Exception as error:  # noqa: BLE001 -- the main thread asserts that there is none
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert servers_of(folder) == []
    store = EmbeddedStore(folder)
    store.start_or_join()
    with open_client(store) as client:
        assert client.get("visits") == "24"
    store.leave()
