"""`ask` for a lease of another holder, and `extend` of a time limit, with real shells."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import StillWaiting
from broker.identity import user_at_host
from tests.api.brokers import eventually
from tests.unit.brokers import broker_of_the_file
from tests.unit.shells import TELL, on, said, shell

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=2, memory_mb=4000)


@pytest.fixture(autouse=True)
def clean(pool: TestBroker) -> Iterator[None]:
    """Leave no lease and no waiter to the next test."""
    yield
    for each in (*pool.client.queue(), *pool.client.leases()):
        pool.client.release(each.token)
    eventually(lambda: not pool.client.queue(), 20)


def waiting(pool: TestBroker, agent: str, *, priority: int = 0, token: str = "") -> str:
    """Return the token of a request that waits: it is asked once, and keeps its place for 10 s."""
    ask: dict[str, Any] = {"memory_mb": 3000, "host": "any", "priority": priority}
    ask["token"] = token or os.urandom(16).hex()
    with pytest.raises(StillWaiting) as waits:
        pool.client.acquire(agent, wait_s=0.01, keep_place=True, **ask)
    return str(waits.value.token)


@pytest.fixture
def held(pool: TestBroker) -> tuple[str, str]:
    """Both devices are held: by a lease that yields, and by one that does not."""
    return (
        pool.client.acquire("kind", memory_mb=4000, yields=True).token,
        pool.client.acquire("firm", memory_mb=4000).token,
    )


def test_waiter_asks_a_holder_for_its_lease(pool: TestBroker, held: tuple[str, str]) -> None:
    """One that yields is told who wants how much; another declines, and the code says so."""
    kind, firm = held
    waiter = waiting(pool, "asker")
    done = on(pool, "ask", kind[:8], "--for", waiter[:8])
    assert (done.returncode, done.stdout) == (0, "asked: kind is told that asker wants 2.9 GiB\n")
    assert pool.client.renew(kind).expires_at_ms
    record = pool.client.redis.hgetall(f"{pool.client.keys.base}:record:{kind}")
    assert record["wanted"] == "3000:asker"
    done = on(pool, "ask", firm, "--for", waiter, "-o", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"schema": 1, "token": firm, "for": waiter, "asked": False}


def test_asker_is_found_by_its_user(pool: TestBroker, held: tuple[str, str]) -> None:
    """One request of this user that waits needs no name; of none or two the way out is told."""
    kind, _ = held
    none = on(pool, "ask", kind)
    assert (none.returncode, "--for" in none.stderr) == (2, True)
    waiting(pool, user_at_host())
    assert on(pool, "ask", kind).returncode == 0
    second = waiting(pool, user_at_host())
    two = on(pool, "ask", kind)
    assert (two.returncode, second[:8] in two.stderr) == (2, True)


def test_only_a_waiter_asks_and_only_a_lease_is_asked_for(
    pool: TestBroker, held: tuple[str, str]
) -> None:
    """Each other case is told in words."""
    kind, firm = held
    waiter = waiting(pool, "asker")
    for token, by, code, says in (
        (waiter, waiter, 1, "has no lease yet"),
        (kind, firm, 2, "has its lease already"),
        (kind, "0" * 32, 1, "nothing is known"),
        ("0" * 32, waiter, 1, "nothing is known"),
    ):
        done = on(pool, "ask", token, "--for", by)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def until_said(process: subprocess.Popen[str], text: str) -> str:
    """Return the next line of stderr that has a text."""
    assert process.stderr
    return next(line for line in process.stderr if text in line)


def test_holder_by_hand_is_told_of_wishes_and_of_its_end(pool: TestBroker) -> None:
    """A holder hears which agent wants how much, of its end, and that there is none after all."""
    pool.client.set_policy(reclaim_after_s=1, preempt_grace_s=60)
    firm = pool.client.acquire("firm", memory_mb=4000)
    script = "exec gpu-broker hold --memory 3000 --ttl 2 --yields --preemptible"
    with shell(pool, script) as process:
        eventually(lambda: len(pool.client.leases()) == 2, 20)
        (kept,) = (x.token for x in pool.client.leases() if x.token != firm.token)
        waiter = waiting(pool, "asker", priority=5)
        assert pool.client.request_yield(kept, waiter)
        assert "asker asks for lease" in until_said(process, "asks for")

        def noticed() -> bool:
            waiting(pool, "asker", priority=5, token=waiter)
            found: Any = pool.client.lookup(kept)
            return found.preempt_at_ms is not None

        eventually(noticed, 20, every_s=0.5)
        assert f"gpu-broker release {kept[:8]}" in until_said(process, "is taken back")
        pool.client.release(waiter)
        assert kept[:8] in until_said(process, "not taken back after all")


def limit_s(pool: TestBroker, token: str) -> float:
    """Return the seconds left of a lease's time limit."""
    found: Any = pool.client.lookup(token)
    return float(found.hold_until_ms - pool.client.pool().now_ms) / 1000


def test_time_limit_moves_with_the_end(pool: TestBroker) -> None:
    """A lease without a keeper ends later by as much; renewals go on to the new limit."""
    lease = pool.client.acquire("someone", memory_mb=100, ttl_s=30, max_hold_s=60)
    told = json.loads(on(pool, "extend", lease.token, "1h", "-o", "json").stdout)
    assert 3600 + 50 < limit_s(pool, lease.token) <= 3660
    assert abs(told["ends_at"] - time.time() - limit_s(pool, lease.token)) < 5
    assert pool.client.renew(lease.token, 3000).remaining_ms > 2_900_000


def test_holder_stays_within_its_teams_limit_and_an_operator_does_not(pool: TestBroker) -> None:
    """A refusal says how; nothing has moved then."""
    pool.client.set_teams({"default": {"max_hold_s": 600}})
    try:
        lease = pool.client.acquire("someone", memory_mb=100, ttl_s=30, max_hold_s=60)
        before: Any = pool.client.lookup(lease.token)
        done = on(pool, "extend", lease.token, "1h")
        assert (done.returncode, "--as-operator" in done.stderr) == (1, True), done.stderr
        assert pool.client.lookup(lease.token) == before
        assert on(pool, "extend", lease.token, "5m").returncode == 0
        assert 350 - 30 < limit_s(pool, lease.token) <= 360
        assert on(pool, "extend", lease.token, "1h", "--as-operator").returncode == 0
        assert limit_s(pool, lease.token) > 3600
    finally:
        pool.client.set_teams({})


def test_limit_of_a_kept_lease_moves_only_as_far_as_its_keeper(pool: TestBroker) -> None:
    """No further than it must: of a team's time no more is taken than is needed."""
    words = 'eval "$(gpu-broker acquire --memory 100 --ttl 2 --for 1m --time 2m --export)"'
    with shell(pool, f"{words}; {TELL}") as process:
        token = said(process).split()[1]
        before = limit_s(pool, token)
        assert on(pool, "extend", token, "30s").returncode == 0
        assert abs(limit_s(pool, token) - before) < 5
        assert on(pool, "extend", token, "10m").returncode == 0
        assert 600 + 60 < limit_s(pool, token) <= 690
