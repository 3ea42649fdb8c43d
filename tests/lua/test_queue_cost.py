"""S8 beside a queue: what a verb costs does not depend on how many wait.

Exact numbers of commands, by Redis's own counters; see `test_cost`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.scripts.source import lua_folder
from tests.audit import audit
from tests.lua.costs import DAY_MS, commands
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Server

QUEUES = (1, 1000, 10_000)
CHUNK = 2000

Call = tuple["Callable[[Pool], Any]", str]

CALLS: dict[str, Call] = {
    "acquire elsewhere": (lambda p: p.acquire(token("mine"), "me", host="h2"), "GRANTED"),
    "renew": (lambda p: p.renew(token("mine")), "RENEWED"),
    "release elsewhere": (lambda p: p.release(token("mine")), "RELEASED"),
    "enqueue": (lambda p: p.acquire(token("last"), "last", host="h1", wait_ms=9000), "WAITING"),
    "poll behind": (lambda p: p.acquire(token("last"), "last", host="h1", wait_ms=8000), "WAITING"),
    "poll of the head": (
        lambda p: p.acquire(token("w0"), "w0", host="h1", wait_ms=8000),
        "WAITING",
    ),
    "release to the head": (lambda p: p.release(token("hold")), "RELEASED"),
    "claim": (lambda p: p.acquire(token("w0"), "w0", host="h1", wait_ms=8000), "GRANTED"),
    "leave": (lambda p: p.release(token("last")), "RELEASED"),
    "reap": (lambda p: p.reap(), "REAPED"),
}
"""Calls one after another beside a queue of so many for h1, whose one device is full."""


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis that nobody else talks to."""
    return own


def counted(server: Server, waiters: int) -> dict[str, int]:
    """Commands of each call, in turn."""
    with server.connect() as client:
        pool = Pool(client)
        pool.freeze()
        for host in ("h1", "h2"):
            pool.report((device(f"gpu-{host}"),), host=host, deadline_ms=DAY_MS)
        granted(pool.acquire(token("hold"), "hold", memory_mb=1000, host="h1", ttl_ms=0))
        sha = pool.scripts["acquire"].sha
        ask = (900, 1, 0, 30000, 0, 0, "h1", "*", "spread", "refuse", "c", "1:1", "", 9000)
        for start in range(0, waiters, CHUNK):
            pipe = client.pipeline(transaction=False)
            for n in range(start, min(waiters, start + CHUNK)):
                pool.skew(1) if n % CHUNK == 0 else None
                pipe.evalsha(sha, 1, pool.keys.base, 1, token(f"w{n}"), f"w{n}", *ask)
            assert {reply[0] for reply in pipe.execute()} == {"WAITING"}
        found = {}
        for name, (call, tag) in CALLS.items():
            reply, found[name] = commands(client, lambda call=call: call(pool))  # type: ignore[misc] # mypy cannot type a lambda with a default
            assert reply[0] == tag, (name, reply)
        audit(client, pool.keys)
        client.flushdb()
        return found


def test_calls_do_not_grow_with_the_queue(server: Server) -> None:
    """At 10,000 waiters every call makes what it makes at 1,000, and at most 1.5 x that at one."""
    one, many, most = (counted(server, waiters) for waiters in QUEUES)
    assert many == most
    for name, count in most.items():
        assert count <= 1.5 * one[name], f"{name}: {one[name]} with one waiter, {count} with 10,000"


def test_handing_on_takes_the_commands_that_the_page_names(server: Server) -> None:
    """A release that hands on, that one's claim, and, all the time, a poll behind others."""
    page = (lua_folder().parent / "docs" / "reference" / "verbs.md").read_text()
    numbers = re.search(
        r"next of two is (\d+) .*?that one's claim (\d+), a poll of one behind others (\d+)",
        page, re.DOTALL,
    )  # fmt: skip
    assert numbers
    found = counted(server, 2)
    names = ("release to the head", "claim", "poll behind")
    assert [found[name] - 1 for name in names] == [int(n) for n in numbers.groups()]
