"""The server of a pool, asked of real ones: replication round trips, reloads, no INFO."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import PROGRAM, environment, eventually
from tests.pools import Pool, device, granted, said, token
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tests.servers import Server

REFUSED = ["REFUSED", "closed", ""]
KINDS = [
    ("redis", False), ("redis", True), ("valkey", False), ("valkey", True),
]  # fmt: skip
BLIND = {
    "renamed": ("--rename-command", "INFO", ""),
    "forbidden": ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info"),
}
"""Settings by which a server does not identify itself."""


def made(client: redis.Redis, *, functions: bool) -> Pool:
    """A pool with one device, which a first call has looked at."""
    pool = Pool(client, functions=functions)
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(token("first"), memory_mb=1))
    pool.release(token("first"))
    return pool


def refused(pool: Pool) -> bool:
    """Tell whether a newcomer is told that holders come first."""
    reply = said(pool.acquire(token("second"), exclusive=1))
    assert reply == REFUSED or reply[0] == "GRANTED", reply
    return reply == REFUSED


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'functions' if kind[1] else 'scripts'}")
def kind(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """A kind of server, and whether its verbs are functions."""
    server, functions = request.param
    return server, functions


@pytest.fixture
def server(kind: tuple[str, bool]) -> Iterator[Server]:
    """One that writes to disk when it is told to."""
    with running(kind[0]) as server:
        yield server


@pytest.fixture
def pool(server: Server, kind: tuple[str, bool]) -> Iterator[Pool]:
    """A pool on it."""
    with server.connect() as client:
        yield made(client, functions=kind[1])


def link(client: redis.Redis) -> str:
    """Give the state of a replica's link to its primary."""
    status: str = client.info("replication").get("master_link_status", "none")
    return status


def test_server_that_followed_another_one_and_leads_again_is_closed(
    pool: Pool, server: Server, kind: tuple[str, bool]
) -> None:
    """Its run_id is what it was; its data are the other's: a backup that was brought in."""
    pool.redis.save()
    with running(kind[0]) as other:
        other.stop()
        (other.folder / "dump.rdb").write_bytes((server.folder / "dump.rdb").read_bytes())
        other.start()
        granted(pool.acquire(token("holder"), exclusive=1))
        pool.redis.replicaof("127.0.0.1", other.port)
        eventually(lambda: link(pool.redis) == "up", 20)
        pool.redis.replicaof("NO", "ONE")
    assert pool.hash(f"record:{token('holder')}") == {}
    assert refused(pool)


def test_first_replica_that_comes_closes_nothing(pool: Pool, kind: tuple[str, bool]) -> None:
    """A server with its first replica has a new master_replid, and lost nothing."""
    before = pool.redis.info("replication")["master_replid"]
    with running(kind[0]) as other, other.connect() as replica:
        replica.replicaof("127.0.0.1", pool.redis.config_get("port")["port"])
        eventually(lambda: link(replica) == "up", 20)
        assert pool.redis.info("replication")["master_replid"] != before
        assert not refused(pool)
        eventually(lambda: pool.reap() and pool.hash("pool")["replid"] != before, 5)
        assert "closed" not in pool.events()


def test_data_of_an_earlier_moment_loaded_anew(pool: Pool) -> None:
    """A library that was loaded with them was not there before; scripts need a witness."""
    pool.redis.save()
    held = granted(pool.acquire(token("holder"), exclusive=1))
    pool.redis.execute_command("DEBUG", "RELOAD", "NOSAVE")
    if not pool.functions:
        assert said(pool.renew(token("holder"), str(held.fence))) == ["UNKNOWN"]
    assert refused(pool)


def test_data_loaded_anew_and_the_same_are_believed_by_scripts(pool: Pool) -> None:
    """Nothing was lost; a library cannot know that, and takes ten seconds."""
    pool.redis.execute_command("DEBUG", "RELOAD")
    assert refused(pool) == pool.functions


@pytest.mark.parametrize("how", BLIND)
def test_crash_of_a_server_that_does_not_tell_who_it_is(how: str, kind: tuple[str, bool]) -> None:
    """Its library knows that it is another life; scripts know by the silence."""
    with running(kind[0], *BLIND[how]) as server, server.connect() as client:
        pool = made(client, functions=kind[1])
        pool.redis.save()
        granted(pool.acquire(token("holder"), exclusive=1))
        server.kill()
        server.start()
        if kind[1]:
            assert refused(pool)
            return
        for script in pool.scripts.values():
            pool.redis.script_load(script.source)
        last_ms = int(pool.hash("pool")["last_ms"])
        eventually(lambda: pool.redis.time()[0] * 1000 > last_ms + 2500, 5)
        assert refused(pool)


@pytest.mark.parametrize("how", BLIND)
def test_server_that_does_not_tell_who_it_is_serves_while_it_is_busy(
    how: str, kind: tuple[str, bool]
) -> None:
    """A pool with a broker, which reaps every second, is open."""
    with running(kind[0], *BLIND[how]) as server, server.connect() as client:
        pool = made(client, functions=kind[1])
        pool.freeze()
        for _ in range(12):
            pool.skew(1000)
            pool.reap()
        assert not refused(pool)


@pytest.mark.parametrize("how", BLIND)
def test_doctor_says_that_a_server_does_not_tell_who_it_is(how: str) -> None:
    """It is WRONG, and what to do about it stands beside it."""
    with running("redis", *BLIND[how]) as server, server.connect() as client:
        made(client, functions=False)
        said = subprocess.run(
            [PROGRAM, "doctor"], env=environment(REDIS_URL=server.url), capture_output=True,
            text=True, timeout=30, check=False,
        )  # fmt: skip
    assert said.returncode == 2  # no host has reported either
    assert "WRONG  INFO does not tell which server this is" in said.stdout
    assert "+info|server" in said.stdout


def test_doctor_of_a_user_who_may_ask_which_server_this_is_finds_nothing_wrong_with_it() -> None:
    """More of INFO than that it need not be allowed."""
    rights = ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info", "+info|server")
    with running("redis", *rights) as server, server.connect() as client:
        pool = made(client, functions=False)
        assert pool.hash("pool")["run_id"]
        said = subprocess.run(
            [PROGRAM, "doctor"], env=environment(REDIS_URL=server.url), capture_output=True,
            text=True, timeout=30, check=False,
        )  # fmt: skip
    assert "does not tell which server" not in said.stdout
