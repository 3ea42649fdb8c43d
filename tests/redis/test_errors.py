"""Errors of a Redis that cannot serve: tried again with the same token, then told in words."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import BrokerUnavailable, LeaseClient, LeaseError, Store
from tests.faults.proxy import Proxy
from tests.redis.clients import LOOKED_S, acquiring
from tests.reports import register
from tests.servers import running
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

SAID = [
    ("READONLY You can't write against a read only replica.", "it is a replica"),
    ("LOADING Redis is loading the dataset in memory", "reading its data"),
    ("MOVED 3999 127.0.0.1:6381", "another node of the Cluster"),
    ("ASK 3999 127.0.0.1:6381", "on its way to another node"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "on its way to another node"),
    ("CLUSTERDOWN The cluster is down", "no majority"),
    ("MASTERDOWN Link with MASTER is down", "lost its primary"),
    ("BUSY Redis is busy running a script.", "a script keeps it busy"),
    ("NOREPLICAS Not enough good replicas to write.", "too few of its replicas"),
    ("NOSCRIPT No matching script. Please use EVAL.", "flushed as fast"),
    ("MISCONF Errors writing to the AOF file: No space left", "cannot write to its disk"),
]
"""A line, and what is then told beside it."""

IDS = [line.partition(" ")[0] for line, _ in SAID]

FULL = "OOM command not allowed when used memory > 'maxmemory'."

DEADLINE_S = 0.3


@pytest.fixture
def pool(own: Server) -> Iterator[LeaseClient]:
    """One device of 1000 MiB in a pool of its own."""
    with LeaseClient(Store(own.url), pool=f"e-{uuid4().hex[:8]}", hostname="h1") as client:
        register(client)
        yield client


def saying(line: str, times: int) -> Callable[[bytes], bytes | None]:
    """The first so many scripts and readings are answered with that line, and not executed."""
    left = times

    def answer(chunk: bytes) -> bytes | None:
        nonlocal left
        if left == 0 or not any(w in chunk for w in (b"FCALL", b"EVALSHA", b"HGETALL")):
            return None
        left -= 1
        commands = re.findall(rb"(?:^|\r\n)\*\d", chunk)
        return f"-{line}\r\n".encode() * len(commands)

    return answer


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("line", "told"), SAID, ids=IDS)
def test_acquire_answered_not_now_is_repeated_with_its_token(
    own: Server, pool: LeaseClient, kind: str, line: str, told: str
) -> None:
    """Twice, and the third is granted: one lease, under the token of the first."""
    token = str(uuid4())
    with (
        Proxy(own.port, answers=saying(line, 2)) as proxy,
        acquiring(kind, Store(proxy.url), pool.keys.pool_name, 5) as acquire,
    ):
        assert acquire(token) == token
    assert [lease.token for lease in pool.leases()] == [token]
    assert pool.pool().stats["granted"] == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("line", "told"), SAID, ids=IDS)
def test_acquire_answered_not_now_to_the_end_says_what_is_true(
    own: Server, pool: LeaseClient, kind: str, line: str, told: str
) -> None:
    """At its deadline: nothing was done, and why."""
    began = time.monotonic()
    with (
        Proxy(own.port, answers=saying(line, 1000)) as proxy,
        acquiring(kind, Store(proxy.url), pool.keys.pool_name, DEADLINE_S) as acquire,
        pytest.raises(LeaseError) as raised,
    ):
        acquire(str(uuid4()))
    assert time.monotonic() - began < 2 * DEADLINE_S + 0.5  # the first client of an event loop
    assert (raised.value.code, raised.value.retryable) == ("store_unavailable", True)
    assert told in str(raised.value)
    assert pool.leases() == ()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_acquire_answered_oom_is_store_full_at_once(
    own: Server, pool: LeaseClient, kind: str
) -> None:
    """Memory does not come back within a call's time; holders go on, so room comes."""
    with (
        Proxy(own.port, answers=saying(FULL, 1)) as proxy,
        acquiring(kind, Store(proxy.url), pool.keys.pool_name, 5) as acquire,
        pytest.raises(LeaseError) as raised,
    ):
        acquire(str(uuid4()))
    assert (raised.value.code, raised.value.retryable) == ("store_full", True)


@pytest.mark.parametrize(("line", "told"), SAID, ids=IDS)
def test_reading_answered_not_now_is_repeated(
    own: Server, pool: LeaseClient, line: str, told: str
) -> None:
    """Status and queue are pipelines, and hear of it in each answer."""
    name = pool.keys.pool_name
    with (
        Proxy(own.port, answers=saying(line, 2)) as proxy,
        LeaseClient(Store(proxy.url), pool=name, hostname="h1") as client,
    ):
        assert len(client.devices()) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_acquire_by_a_name_that_moves_follows_it(kind: str) -> None:
    """A name's server becomes a replica and the name another's: the open connection is left."""
    with (
        running("redis", "--repl-diskless-sync-delay", "0") as old,
        running() as new,
        LeaseClient(Store(old.url), hostname="h1") as client,
        Proxy(old.port) as name,
        acquiring(kind, Store(name.url), "default", 5) as acquire,
    ):
        register(client)
        before = acquire(str(uuid4()))
        with new.connect() as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", old.port)
            until(lambda: admin.info("replication")["master_link_status"] == "up")
            admin.execute_command("REPLICAOF", "NO", "ONE")
        with old.connect() as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", new.port)
        name.port = new.port
        time.sleep(LOOKED_S)
        with pytest.raises(BrokerUnavailable) as raised:
            acquire(str(uuid4()))
        assert raised.value.code == "closed"  # which only the new one answers
        with LeaseClient(Store(new.url), hostname="h1") as there:
            assert [lease.token for lease in there.leases()] == [before]
