"""Start of `gpu-broker run`: what it imports, and what it asks the store, before the command."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from agent_sdk import LeaseClient, Store
from agent_sdk.errors import BrokerUnavailable, Denied
from agent_sdk.protocol.messages import SCHEMA
from agent_sdk.scripts import library
from agent_sdk.store.quick import QuickRedis, QuickStore
from agent_sdk.testing import TestBroker, running_broker
from tests.unit.cli_runs import run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

HEAVY = {
    "asyncio", "email", "fastapi", "http", "httpx", "opentelemetry", "prometheus_client",
    "pydantic", "redis", "redis.client", "redis.connection", "rich", "ssl",
}  # fmt: skip
"""Modules without which a command starts."""

UNREAD = {"agent_sdk.aio", "agent_sdk.orchestrator", "agent_sdk.state.pool_state", "broker.app"}
"""Modules of ours that it needs no more."""

MODULES_AT_THE_END = (
    "import atexit, sys; from broker.cli import main;"
    "atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
    "main(sys.argv[1:], 'gpu-broker')"
)


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """Two devices of 1000 MiB."""
    with running_broker(devices=2, memory_mb=1000) as running:
        yield running


def modules_of(pool: TestBroker, *args: str) -> set[str]:
    """Return the modules that a call imported until it ended."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES_AT_THE_END, *args],
        env=settings(pool),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


ALL_COMMANDS = (
    "import sys; from broker.cli import COMMANDS, main;"
    "[main.get_command(None, name) for name in COMMANDS]; print(*sys.modules)"
)

WITHOUT_FASTAPI = (
    "import sys; sys.modules['fastapi'] = None; from broker.cli import main;"
    "main(sys.argv[1:], 'gpu-broker')"
)


def python(text: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a text."""
    return subprocess.run(
        [sys.executable, "-c", text, *args], capture_output=True, text=True, check=False
    )


def test_help_of_no_command_needs_an_extra() -> None:
    """A command imports its means when it works."""
    loaded = set(python(ALL_COMMANDS).stdout.split())
    assert "broker.cli.commands.serve" in loaded
    assert (
        loaded & {"fastapi", "mcp", "pydantic", "pynvml", "redis", "structlog", "uvicorn"} == set()
    )


@pytest.mark.parametrize("args", [["serve"], ["serve", "--demo"]])
def test_command_without_its_extra_says_how_to_get_it(args: list[str]) -> None:
    done = python(WITHOUT_FASTAPI, *args)
    said = "gpu-broker serve needs fastapi: pip install 'gpu-lease-broker[broker]'\n"
    assert (done.returncode, done.stderr) == (69, said)


@pytest.mark.parametrize("functions", [True, False])
def test_run_does_without_redis_py_and_asyncio_to_its_end(
    pool: TestBroker, functions: bool
) -> None:
    """A lease on a plain store is granted, kept and given back by hiredis alone."""
    library.delete(pool.client.redis)
    if functions:
        library.load(pool.client.redis)
    loaded = modules_of(pool, "run", "-q", "--memory", "10", "--", "true")
    assert "broker.run.supervise" in loaded
    assert loaded & (HEAVY | UNREAD) == set()


def test_server_is_asked_twice_before_the_command_starts() -> None:
    """One greeting, one grant, one reading of the limits: no more round trips."""
    with (
        running_broker(devices=1, memory_mb=1000) as pool,
        Redis.from_url(pool.url, decode_responses=True) as redis,
        redis.monitor() as monitor,
    ):
        library.load(pool.client.redis)
        path = pool.url.partition("://")[2]
        done = run(pool, "-q", "--memory", "10", "--", "redis-cli", "-s", path, "ECHO", "begun")
        assert done.returncode == 0
        sent: list[list[str]] = []
        while not sent or sent[-1][0] != "ECHO":
            found = monitor.next_command()
            if found["client_type"] != "lua":
                sent.append(found["command"].split())
    began = next(n for n, words in enumerate(sent) if words[0] == "FCALL")
    assert [words[0] for words in sent[began - 1 :][:4]] == ["HELLO", "FCALL", "HMGET", "HMGET"]
    assert "acquire" in sent[began][1]


def test_command_starts_in_less_cpu_time_than_redis_py_is_imported(pool: TestBroker) -> None:
    """Promised for a plain store: 150 ms on a quiet machine, of which the interpreter takes 20."""

    def seconds(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], env=settings(pool), check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    call = ("-c", MODULES_AT_THE_END.partition("atexit.register")[0] + "main(sys.argv[1:])")
    rounds = [
        (
            seconds(*call, "run", "-q", "--memory", "10", "--", "true"),
            seconds("-c", "import redis, redis.asyncio, click"),
        )
        for _ in range(7)
    ]
    assert min(ours for ours, _ in rounds) < 1.5 * min(theirs for _, theirs in rounds)


@pytest.fixture
def quick(pool: TestBroker) -> Iterator[LeaseClient]:
    """A client that begins without redis-py."""
    with LeaseClient(QuickStore(pool.url), hostname=pool.host) as client:
        assert isinstance(client.redis, QuickRedis)
        yield client


def test_quick_client_reads_the_same_as_redis_py(pool: TestBroker, quick: LeaseClient) -> None:
    """Every reading of a pool with a lease and a waiter."""
    with LeaseClient(Store(pool.url), hostname=pool.host) as plain:
        held = quick.acquire("a", memory_mb=10, exclusive=True)
        assert plain.leases() == quick.leases() != ()
        assert plain.devices() == quick.devices()
        assert plain.hosts() == quick.hosts()
        assert plain.events() == quick.events()
        assert plain.explain(held.token).code == quick.explain(held.token).code == "active"
        ours, theirs = quick.pool(), plain.pool()
        assert (ours.stats, ours.epoch) == (theirs.stats, theirs.epoch)
        assert quick.release(held)


def test_several_calls_at_once_are_redis_pys(quick: LeaseClient) -> None:
    """One of them may be refused, and the others, which were carried out, are not repeated."""
    held = quick.acquire("a", memory_mb=10)
    after = quick.exchange(held, "a", memory_mb=20)
    assert [x.token for x in quick.leases()] == [after.token]
    assert quick.release(after)


def test_refusals_are_redis_pys_own(quick: LeaseClient) -> None:
    """A call that the server refused is repeated by redis-py, which raises its error."""
    with pytest.raises(ResponseError, match="wrong number of arguments"):
        quick.redis.execute_command("HGETALL", "a", "b")
    assert quick.pool().ready


def test_store_that_is_away_is_told_as_by_redis_py(tmp_path: Path) -> None:
    """A socket without a server, and one that this user may not use."""
    for folder in (tmp_path / "none", Path("/proc/1/cwd")):
        told = []
        for kind in (QuickStore, Store):
            with LeaseClient(kind(f"unix://{folder}/redis.sock"), deadline_s=0.1) as client:
                with pytest.raises(BrokerUnavailable) as away:
                    client.pool()
                told.append(str(away.value))
        assert told[0] == told[1]


def test_passwords_and_databases_are_as_with_redis_py(own: Server) -> None:
    """The right password is taken, a wrong one is refused as denied; the database is chosen."""
    with Redis.from_url(own.url, decode_responses=True) as redis:
        redis.config_set("requirepass", "secret")
        redis.execute_command("AUTH", "secret")
        where = own.url.partition("://")[2].rstrip("/")
        with LeaseClient(QuickStore(f"redis://:secret@{where}/3")) as client:
            assert client.redis.execute_command("HGET", "none", "f") is None
            assert "3" in {found["db"] for found in redis.client_list()}
        other = QuickStore(f"redis://:wrong@{where}/0")
        with LeaseClient(other, deadline_s=0.1) as client, pytest.raises(Denied):
            client.pool()
        redis.config_set("requirepass", "")


def test_user_without_a_password_in_the_url_is_no_other_user(own: Server) -> None:
    """Not the default user, whose rights are others: one with a password of its own is denied."""
    with own.connect() as redis:
        redis.acl_setuser("open", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
        redis.acl_setuser("shut", enabled=True, passwords=["+word"], commands=["+@all"], keys=["*"])
        where = own.url.partition("://")[2]
        with LeaseClient(QuickStore(f"redis://open@{where}")) as client:
            assert client.redis.execute_command("HGET", "none", "f") is None
            assert "open" in {found["user"] for found in redis.client_list()}
        other = QuickStore(f"redis://shut@{where}")
        with LeaseClient(other, deadline_s=0.1) as client, pytest.raises(Denied):
            client.pool()


def test_call_that_is_interrupted_leaves_no_answer_for_the_next(quick: LeaseClient) -> None:
    """A handler that raises in the middle of a call: the connection is closed."""

    def struck(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, struck)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            quick.redis.execute_command("BLMPOP", 1, 1, "none", "LEFT")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert quick.pool().ready
    assert quick.redis.execute_command("HGET", quick.keys.pool, "schema") == str(SCHEMA)


def test_connection_that_breaks_is_replaced(pool: TestBroker, quick: LeaseClient) -> None:
    """Its call is repeated by the token, as with redis-py."""
    assert quick.pool().ready
    with Redis.from_url(pool.url) as redis:
        redis.execute_command("CLIENT", "KILL", "TYPE", "normal")
    lease = quick.acquire("a", memory_mb=10)
    assert quick.release(lease)


def test_other_kinds_of_stores_are_redis_pys(tmp_path: Path) -> None:
    """TLS, Sentinels, a Cluster, and options that change how a connection behaves."""
    for url in (
        "rediss://h", "redis+sentinel://h/s", "redis+cluster://h", "redis://h?health_check_interval=1",
    ):  # fmt: skip
        assert isinstance(QuickStore(url).connect(), Redis), url
