"""The embedded store dies under a broker that serves, or left a file that it cannot read."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import redis

from agent_sdk import LeaseClient, Store
from agent_sdk.store import aof
from agent_sdk.store.embedded import EmbeddedStore
from agent_sdk.store.server_binary import EmbeddedError
from tests.api.brokers import SIM, Broker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A state folder whose server is dead at the end."""
    state = tmp_path / "s"
    yield state
    if pid := server_of(state):
        os.kill(pid, signal.SIGKILL)


def server_of(state: Path) -> int | None:
    """The pid of a folder's server, as it tells it; None: there is none, or it still loads."""
    try:
        with redis.Redis(unix_socket_path=str(state / "redis.sock")) as client:
            return int(client.info("server")["process_id"])
    except redis.ConnectionError:
        return None


def kill(state: Path) -> int:
    """SIGKILL to the server once it answers: its pid."""
    pid = int(eventually(lambda: server_of(state), 5))
    os.kill(pid, signal.SIGKILL)
    return pid


def settings(state: Path) -> dict[str, str]:
    return SIM | {"GPU_BROKER_STATE_DIR": str(state)}


def test_store_that_is_killed_is_started_anew_by_who_serves(folder: Path) -> None:
    """Its leases are there, and the log says what happened; again and again."""
    with Broker(**settings(folder)) as broker:
        broker.wait()
        held = broker.granted(min_memory_mb=100, ttl_s=600)
        time.sleep(1.2)  # appendfsync everysec
        for turn in range(1, 3):
            before = kill(folder)
            eventually(lambda before=before: server_of(folder) not in {None, before}, 15)
            broker.wait()
            assert held["token"] in broker.allocations()
            assert broker.said().count("was started anew") == turn
        assert broker.stop() == 0
        assert server_of(folder) is None, "it is still the last one's to end"


def test_store_of_two_brokers_is_started_anew_once(folder: Path) -> None:
    """The first that sees it starts it, the other goes on with it."""
    with Broker(**settings(folder)) as one, Broker(**settings(folder)) as other:
        one.wait(), other.wait()
        before = kill(folder)
        eventually(lambda: server_of(folder) not in {None, before}, 15)
        one.wait(), other.wait()
        assert [b.said().count("was started anew") for b in (one, other)] in ([0, 1], [1, 0])
        assert one.stop() == 0
        other.wait()
        assert other.stop() == 0


def test_store_that_cannot_be_started_anew_is_said_once_and_tried_again(folder: Path) -> None:
    """A broker whose store is gone says so on /ready and goes on; when it can, it starts it."""
    with Broker(**settings(folder)) as broker:
        broker.wait()
        conf = folder / "redis.conf"
        conf.unlink()
        conf.mkdir()
        kill(folder)
        eventually(lambda: "redis.conf" in broker.said(), 15)
        assert broker.http.get("/ready").status_code == 503
        conf.rmdir()
        broker.wait()


DEVICE = ("SIM-0", tuple({
    "index": 0, "name": "g", "model": "g", "total_mb": 1000, "system_mb": 0, "used_mb": 0,
    "state": "ok", "simulated": 1,
}.items()))  # fmt: skip


@pytest.fixture
def store(folder: Path) -> Iterator[EmbeddedStore]:
    """A store that runs."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    yield store
    with suppress(EmbeddedError):
        store.leave()


def client_of(store: EmbeddedStore) -> LeaseClient:
    return LeaseClient(Store(store.url), hostname="h1")


def last_file(state: Path) -> Path:
    return max((state / aof.FOLDER).glob("*.incr.aof"))


def spoil(file: Path, how: str) -> None:
    """Damage a file as a power cut, a full disk or a hand does."""
    size = file.stat().st_size
    with file.open("r+b") as content:
        if how == "cut":
            os.truncate(file, size - 37)
        elif how == "zeros at the end":
            # From the beginning of a word: where one is short, the server takes it for a cut
            begin = content.read().rindex(b"\r\n$", 0, size - 150) + 2
            content.seek(begin)
            content.write(bytes(size - begin))
        elif how == "zeros after the end":
            content.seek(0, os.SEEK_END)
            content.write(bytes(4096))
        elif how == "half a transaction":
            content.seek(0, os.SEEK_END)
            content.write(b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nDEL\r\n$1\r\nx\r\n" + bytes(9))
        elif how == "no list of files":
            next(file.parent.glob("*.manifest")).unlink()


SPOILT = ["cut", "zeros at the end", "zeros after the end", "half a transaction",
          "no list of files"]  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_store_starts_on_a_file_that_is_spoilt_at_its_end(
    store: EmbeddedStore, folder: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All but what was written last is there; what was cut off is kept, and said."""
    with client_of(store) as client:
        client.report(
            "h1", (DEVICE,), deadline_ms=60_000, sampled_ms=0, epoch="", safe_mode=False,
            version="x",
        )  # fmt: skip
        tokens = {client.acquire("a", memory_mb=1, ttl_s=0).token for _ in range(20)}
        time.sleep(1.2)  # appendfsync everysec
        kill(folder)
        eventually(store.refuses, 5)
        spoil(last_file(folder), how)
        assert store.start_or_join() is True
        assert len(tokens & {lease.token for lease in client.leases()}) >= 18
    mended = how not in {"cut", "no list of files"}  # the server mends the first itself
    assert len(list((folder / aof.FOLDER).glob("*.cut-*"))) == mended
    assert ("what was cut off is in" in caplog.text) == mended
    assert store.began_anew is False


def test_store_whose_files_cannot_be_read_is_set_aside_and_hears_holders_first(
    folder: Path,
) -> None:
    """A holder may bring its lease back before another client gets the room."""
    with Broker(**settings(folder)) as broker:
        broker.wait()
        broker.granted(min_memory_mb=100, ttl_s=600)
        assert broker.stop() == 0
    file = last_file(folder)
    # Whole commands, of a word that no server knows: no cut helps.
    file.write_bytes(b"*1\r\n$6\r\nNOSUCH\r\n" + file.read_bytes())
    with Broker(**settings(folder)) as broker:
        broker.wait("/health")
        reasons = eventually(
            lambda: broker.http.get("/ready").json().get("reason", "").count("holders come first"),
            15,
        )
        assert reasons
        assert "the store begins anew" in broker.said()
        assert len(list(folder.glob(f"{aof.FOLDER}.damaged-*"))) == 1
        assert broker.stop() == 0


def test_whole_bytes_of_any_cut_of_a_file_end_with_a_whole_command(tmp_path: Path) -> None:
    """At each byte of commands, comments and a transaction."""
    set_one = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n\r\n*1\r\n"
    parts = [b"#TS:1700000000\r\n", set_one,
             b"*1\r\n$5\r\nMULTI\r\n" + set_one + b"*1\r\n$4\r\nEXEC\r\n", set_one]  # fmt: skip
    ends, whole = {0}, b""
    for part in parts:
        whole += part
        ends.add(len(whole))
    for cut in range(len(whole) + 1):
        for tail in (b"", bytes(50)):
            file = tmp_path / "x"
            file.write_bytes(whole[:cut] + tail)
            with file.open("rb") as content:
                assert aof.whole_bytes(content) == max(end for end in ends if end <= cut)
