"""S8: what a verb costs does not depend on how many devices and leases there are.

Counted are the commands that Redis ran, by its own counters: exact numbers, not times. The pool's
clock stands still, so that no call has more to do than its neighbour.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit import audit
from tests.lua.costs import DAY_MS, commands
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from tests.servers import Server

HOST_DEVICES = 8
TOTAL_MB = 80_000

Setup = Callable[[Pool], object]
Verb = Callable[[Pool], list[Any]]


LEASES = 100_000 if os.environ.get("GPU_BROKER_SOAK") == "1" else 20_000


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis: what is counted here is the same on every server."""
    return own


def register(pool: Pool, count: int) -> None:
    """Report that many devices, eight to a host, of one model; the first 64 are packed last."""
    for host in range(count // HOST_DEVICES):
        name = f"{'gpu' if host < HOST_DEVICES else 'far'}-{host:04}"
        found = tuple(device(f"{name}-{n}", TOTAL_MB, index=n) for n in range(HOST_DEVICES))
        pool.report(found, host=f"h{host:04}", deadline_ms=DAY_MS)


def occupy(pool: Pool, leases: int) -> None:
    """Make that many leases without end, packed on as few devices as hold them."""
    pool.policy(max_leases_per_agent=10**9, max_memory_per_agent_mb=10**12)
    sha, base = pool.scripts["acquire"].sha, pool.keys.base
    ask = (1000, 1, 0, 0, 0, 0, "*", "*", "pack", "refuse", "client", "1:1", "")
    for start in range(0, leases, 5000):
        pipe = pool.redis.pipeline(transaction=False)
        for n in range(start, min(leases, start + 5000)):
            pipe.evalsha(sha, 1, base, 1, token(f"load-{n}"), f"agent{n % 1000}", *ask)
        assert {reply[0] for reply in pipe.execute()} == {"GRANTED"}


def overdue(count: int) -> Setup:
    """Make that many leases that are over and not reaped yet."""

    def setup(pool: Pool) -> None:
        for n in range(count):
            granted(pool.acquire(token(f"old-{n}"), memory_mb=1000, ttl_ms=2000))
        pool.skew(2001)
        pool.run("renew", 1, token("nobody"), "x", "")  # malformed: only the clock is written

    return setup


def nothing(_: Pool) -> None:
    """No preparation."""


def hold(**ask: Any) -> Setup:
    """The token `mine` holds what is asked."""
    return lambda pool: granted(pool.acquire(token("mine"), **ask))


FULL = {"memory_mb": TOTAL_MB, "host": "h0000", "model": "m1"}

CASES: dict[str, tuple[Setup, Verb, str]] = {
    "spread": (nothing, lambda p: p.acquire(token("mine")), "GRANTED"),
    "pack": (nothing, lambda p: p.acquire(token("mine"), placement="pack"), "GRANTED"),
    "host": (nothing, lambda p: p.acquire(token("mine"), host="h0007"), "GRANTED"),
    "model": (nothing, lambda p: p.acquire(token("mine"), model="m1"), "GRANTED"),
    "host and model": (
        nothing, lambda p: p.acquire(token("mine"), host="h0007", model="m1"), "GRANTED",
    ),
    "exclusive": (nothing, lambda p: p.acquire(token("mine"), exclusive=1), "GRANTED"),
    "exclusive here": (
        nothing, lambda p: p.acquire(token("mine"), exclusive=1, host="h0007"), "GRANTED",
    ),
    "four": (nothing, lambda p: p.acquire(token("mine"), devices=4), "GRANTED"),
    "eight": (nothing, lambda p: p.acquire(token("mine"), devices=8, model="m1"), "GRANTED"),
    "never fits": (nothing, lambda p: p.acquire(token("mine"), memory_mb=TOTAL_MB + 1), "REFUSED"),
    "too many": (nothing, lambda p: p.acquire(token("mine"), devices=9), "REFUSED"),
    "cpu": (
        nothing, lambda p: p.acquire(token("mine"), host="x", on_unavailable="cpu"), "GRANTED",
    ),
    "repeat": (hold(), lambda p: p.acquire(token("mine")), "GRANTED"),
    "conflict": (hold(), lambda p: p.acquire(token("mine"), memory_mb=1), "CONFLICT"),
    "renew": (hold(), lambda p: p.renew(token("mine")), "RENEWED"),
    "renew four": (hold(devices=4), lambda p: p.renew(token("mine")), "RENEWED"),
    "renew unknown": (nothing, lambda p: p.renew(token("mine")), "UNKNOWN"),
    "renew many": (hold(), lambda p: p.renew_many((token("mine"), "", "")), "OUTCOMES"),
    "release": (hold(), lambda p: p.release(token("mine")), "RELEASED"),
    "release eight": (hold(devices=8), lambda p: p.release(token("mine")), "RELEASED"),
    "release unknown": (nothing, lambda p: p.release(token("mine"), 0), "UNKNOWN"),
    "revoke": (hold(), lambda p: p.revoke(token("mine")), "REVOKED"),
    "revoke eight now": (hold(devices=8), lambda p: p.revoke(token("mine"), 1), "REVOKED"),
    "drain": (nothing, lambda p: p.drain("gpu-0007-0"), "DRAINED"),
    "undrain": (nothing, lambda p: p.drain("gpu-0007-0", drained=0), "UNDRAINED"),
    "set policy": (nothing, lambda p: p.set_policy(default_memory_mb=2048), "POLICY"),
    "reap nothing": (nothing, lambda p: p.reap(), "REAPED"),
    "reap 16": (overdue(16), lambda p: p.reap(), "REAPED"),
    "reap 16 of 40": (overdue(40), lambda p: p.reap(), "REAPED"),
    "acquire and reap 16 of 40": (overdue(40), lambda p: p.acquire(token("mine")), "GRANTED"),
    "report nothing": (
        nothing, lambda p: p.report(host="h0007", deadline_ms=DAY_MS), "REPORTED",
    ),
    "report one": (
        nothing,
        lambda p: p.report(
            (device("gpu-0007-0", TOTAL_MB),), host="h0007", deadline_ms=DAY_MS
        ),
        "REPORTED",
    ),
    "report one changed": (
        nothing,
        lambda p: p.report(
            (device("gpu-0007-0", TOTAL_MB, used_mb=100),), host="h0007", deadline_ms=DAY_MS
        ),
        "REPORTED",
    ),
    "forget": (nothing, lambda p: p.forget("gpu-0007-0"), "FORGOTTEN"),
    "release driver": (nothing, lambda p: p.release_driver("h0007"), "DRIVER"),
}  # fmt: skip
"""Name -> what happens before, the call that is counted, its tag."""


MOST = {
    "spread": 28, "pack": 28, "host": 28, "model": 28, "host and model": 28, "exclusive": 28,
    "cpu": 20, "repeat": 10, "conflict": 10, "renew": 10,
    "renew many": 10, "release": 28, "reap nothing": 6,
    "report nothing": 10, "report one": 14, "never fits": 12, "renew unknown": 8,
    "release unknown": 8,
}  # fmt: skip
"""Most commands that the design allows the calls that agents make all the time."""


def counted(pool: Pool) -> dict[str, int]:
    """Commands by case; the pool is afterwards as it was before."""
    pool.checked = False  # a check of its own would be counted
    found = {}
    for name, (setup, call, tag) in CASES.items():
        setup(pool)
        reply, found[name] = commands(pool.redis, lambda call=call: call(pool))  # type: ignore[misc] # a default binds it
        assert reply[0] == tag, (name, reply)
        pool.reap_all()
        pool.release(token("mine"), 0)
        old = (pool.keys.done(token(f"old-{n}")) for n in range(40))
        pool.redis.delete(pool.keys.done(token("mine")), *old)
    pool.report((device("gpu-0007-0", TOTAL_MB),), host="h0007", deadline_ms=DAY_MS)
    return found


@pytest.fixture(scope="module")
def small(server: Server) -> dict[str, int]:
    """Commands by case in a pool of 64 devices and no lease."""
    with server.connect() as client:
        pool = Pool(client)
        pool.freeze()
        register(pool, 64)
        found = counted(pool)
        audit(client, pool.keys)
        return found


def test_verb_in_a_small_pool_runs_few_commands(small: dict[str, int]) -> None:
    """Server time per script is everybody's time: the common calls stay within the design."""
    over = {name: (small[name], most) for name, most in MOST.items() if small[name] > most}
    assert not over


def test_function_runs_no_more_commands_than_the_script(
    server: Server, small: dict[str, int]
) -> None:
    """Kept state saves some, and costs none where it is void."""
    with server.connect() as client:
        pool = Pool(client, functions=True)
        pool.freeze()
        register(pool, 64)
        counted(pool)  # from now on the library knows this pool
        found = counted(pool)
        audit(client, pool.keys)
    assert {name: n for name, n in found.items() if n > small[name]} == {}


def test_verb_for_several_devices_costs_by_device(small: dict[str, int]) -> None:
    """k devices cost at most k times as much as one; a bounded reap at most its bound."""
    assert small["eight"] <= 8 * small["exclusive"]
    assert small["release eight"] <= 8 * small["release"]
    assert small["reap 16 of 40"] <= 16 * small["release"] + small["reap nothing"]


@pytest.mark.slow
def test_verb_in_a_large_pool_runs_as_many_commands_as_in_a_small_one(
    pool: Pool, small: dict[str, int], server: Server
) -> None:
    """Not one command more on 16,384 devices, whichever it finds; nor beside many leases."""
    register(pool, 16_384)
    assert counted(pool) == small
    with server.connect() as client:
        other = Pool(client)
        other.freeze()
        register(other, 128)
        occupy(other, 64 * TOTAL_MB // 1000 // 2)  # whole devices; its team has something
        beside_some = counted(other)
    occupy(pool, LEASES)
    assert counted(pool) == beside_some
