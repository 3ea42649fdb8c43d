"""reap, and what every verb does of it: capacity comes back from the silent, bounded, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.pools import Pool, device, granted, said, token, uuids

if TYPE_CHECKING:
    from collections.abc import Callable


def backlog(pool: Pool, count: int, **ask: Any) -> None:
    """Make that many leases that are all over by now, and not reaped yet."""
    for n in range(count):
        granted(pool.acquire(token(n), **{"memory_mb": 1, "ttl_ms": 3000} | ask))
    pool.skew(5000)


def test_reap_with_nothing_over_changes_nothing(gpu: Pool) -> None:
    """A quiet reap writes nothing."""
    gpu.acquire()
    before = gpu.stored()
    assert said(gpu.reap()) == ["REAPED"]
    assert gpu.stored() == before


def test_reap_gives_back_what_expired(gpu: Pool) -> None:
    """The millisecond after its end a lease is over: memory, agent, key and record (L2)."""
    gpu.acquire(token("a"), ttl_ms=5000)
    gpu.skew(5000)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 100}, "its native key may still live in its last millisecond"
    gpu.skew(1)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 1000}
    assert gpu.hash("agents") == {}
    assert not gpu.redis.exists(gpu.keys.lease("gpu-a", token("a")), gpu.keys.record(token("a")))
    assert gpu.ended(token("a")) == "expired"
    assert 890_000 < gpu.redis.pttl(gpu.keys.done(token("a"))) <= 900_000


def test_reap_is_bounded_and_says_that_more_is_over(gpu: Pool) -> None:
    """One call takes back 16 devices, and `more` is 1 until nothing is left."""
    backlog(gpu, 40)
    for left, more in ((24, 1), (8, 1), (0, 0)):
        assert gpu.reap()[4] == more
        assert gpu.free() == {"gpu-a": 1000 - left}
    assert gpu.stats() == {"granted": 40, "expired": 40}


def test_reap_of_exactly_the_bound_says_that_nothing_is_left(gpu: Pool) -> None:
    """16 of 16: `more` is 0."""
    backlog(gpu, 16)
    assert gpu.reap()[4] == 0
    assert gpu.free() == {"gpu-a": 1000}


def test_reap_counts_devices_not_leases(pool: Pool) -> None:
    """A lease on many devices uses the bound up, and may exceed it once."""
    pool.report(tuple(device(f"gpu-{n}") for n in range(60)))
    granted(pool.acquire(token("live"), devices=20))
    backlog(pool, 2, devices=20)
    assert (pool.reap()[4], len(pool.free())) == (1, 20)
    assert (pool.reap()[4], len(pool.free())) == (0, 40)


def test_reap_takes_a_cpu_lease_back(gpu: Pool) -> None:
    """CPU leases have deadlines as others and are counted apart."""
    backlog(gpu, 3, memory_mb=9999, on_unavailable="cpu")
    assert gpu.reap()[4] == 0
    assert gpu.stats() == {"cpu_granted": 3, "cpu_expired": 3}
    assert gpu.hash("agents") == {}


def test_reap_beside_an_exclusive_lease_leaves_that_one_alone(pool: Pool) -> None:
    """An end on one device of several lists no device that another lease holds."""
    pool.report((device("gpu-a"), device("gpu-b"), device("gpu-c")))
    pool.acquire(token("two"), devices=2, ttl_ms=3000)
    [third] = uuids(pool.acquire(token("one"), exclusive=1))
    pool.skew(3001)
    pool.reap()
    assert set(pool.free()) == {"gpu-a", "gpu-b", "gpu-c"} - {third}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda p, t: p.release(t), ["ALREADY", "expired"]),
        (lambda p, t: p.renew(t), ["LOST", "expired"]),
        (lambda p, t: p.acquire(t, memory_mb=1, ttl_ms=3000), ["LOST", "expired"]),
    ],
    ids=["release", "renew", "acquire"],
)
def test_verb_that_names_an_overdue_token_settles_it_before_the_backlog(
    gpu: Pool, call: Callable[[Pool, str], list[Any]], expected: list[str]
) -> None:
    """The answer about a token does not hang on how many others are overdue."""
    backlog(gpu, 40)
    reply = call(gpu, token(39))
    assert said(reply) == expected
    assert reply[4] == 1
    assert gpu.free() == {"gpu-a": 1000 - 24}, "the named one counts in the bound"


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.acquire(memory_mb=1), lambda p: p.renew(token("live")),
        lambda p: p.release(token("live")), lambda p: p.report(), lambda p: p.reap(),
        lambda p: p.release(token("nobody"), plant=0), lambda p: p.acquire(memory_mb=9999),
    ],
    ids=["acquire", "renew", "release", "report", "reap", "unknown", "refused"],
)  # fmt: skip
def test_verb_of_any_kind_takes_back_what_is_over_first(
    gpu: Pool, call: Callable[[Pool], list[Any]]
) -> None:
    """Nobody waits for a janitor: the next caller reaps, whatever it calls for (L2)."""
    gpu.acquire(token("live"), memory_mb=1)
    backlog(gpu, 3)
    call(gpu)
    assert gpu.stats()["expired"] == 3
    assert not gpu.redis.exists(*(gpu.keys.record(token(n)) for n in range(3)))


def test_verb_replies_tell_the_next_deadline(pool: Pool) -> None:
    """next_deadline_ms is never later than the first deadline, and that of reap is it.

    The fixture compares each reply of every test; here the first deadline changes each time.
    What was first, and was renewed or given back, is what others still tell.
    """
    assert pool.report((device("gpu-a", 9000),), deadline_ms=9000)[2] == pool.first_deadline()
    now = pool.reap()[1]
    assert pool.acquire(token("a"), ttl_ms=4000)[2] == now + 4000
    assert pool.acquire(token("b"), ttl_ms=3000)[2] == now + 3000
    assert pool.acquire(token("c"), ttl_ms=5000)[2] == now + 3000
    assert pool.acquire(token("b"), ttl_ms=3000)[2] == now + 3000
    assert pool.renew(token("b"), ttl_ms=8000)[2] == now + 3000
    assert pool.release(token("a"))[2] == now + 3000
    assert pool.reap()[2] == now + 5000
    assert pool.renew(token("c"), ttl_ms=6000)[2] == now + 5000
    pool.skew(5001)
    assert pool.acquire(memory_mb=99999)[2] == now + 6000, "past what it had heard, it looked"
    assert pool.report(deadline_ms=500)[2] == now + 5501
    pool.release(token("c"))
    assert pool.report(deadline_ms=2000)[2] == now + 5501
    assert pool.reap()[2] == now + 7001
    pool.release(token("b"))
    pool.skew(2001)
    assert pool.reap()[2] == "", "the host is away and nothing else is due"
    assert pool.release(token("b"))[2] == ""


def test_reap_finds_what_was_put_among_the_deadlines_behind_the_scripts_backs(gpu: Pool) -> None:
    """By an operator's hand, or by scripts of a version that keeps no note of the first."""
    gpu.acquire(token("a"))
    soon = gpu.reap()[1] + 500
    gpu.redis.zadd(gpu.keys.deadlines, {token("a"): soon})
    gpu.by_hand()
    gpu.redis.hset(gpu.keys.record(token("a")), "expires_at_ms", soon)
    gpu.by_hand()
    gpu.skew(600)
    gpu.reap()
    assert gpu.stats()["expired"] == 1


@pytest.mark.parametrize("verb", ["renew", "acquire"])
def test_lease_whose_end_was_not_noted_is_over_all_the_same(gpu: Pool, verb: str) -> None:
    """S4: scripts of an older version note no ends; their leases are not resurrected by ours."""
    gpu.acquire(token("a"), ttl_ms=30_000)
    soon = gpu.reap()[1] + 1000
    gpu.redis.zadd(gpu.keys.deadlines, {token("a"): soon})
    gpu.by_hand()
    gpu.redis.hset(gpu.keys.record(token("a")), "expires_at_ms", soon)
    gpu.by_hand()
    gpu.skew(2000)
    answer = gpu.renew(token("a")) if verb == "renew" else gpu.acquire(token("a"), ttl_ms=30_000)
    assert said(answer) == ["LOST", "expired"]
    assert gpu.stats()["expired"] == 1


def test_report_that_makes_a_pool_looks_at_the_deadlines_that_it_finds(pool: Pool) -> None:
    """L2: the pool's own key was removed by hand; what is over is taken back at once."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(token("a"), ttl_ms=1000)
    pool.skew(1001)
    pool.redis.delete(pool.keys.pool)
    pool.by_hand()
    pool.report((device("gpu-a", 1000),))
    assert not pool.redis.exists(pool.keys.record(token("a")))


def test_count_of_idle_devices_that_was_removed_is_counted_anew(pool: Pool) -> None:
    """S10: by hand; the next lease of one of them finds it missing."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 1000, index=1)), deadline_ms=60_000)
    (count,) = pool.redis.scan_iter(f"{pool.keys.base}:idlehosts:*")
    pool.redis.delete(count)
    pool.by_hand()
    pool.acquire(token("a"), memory_mb=100)
    assert pool.redis.zscore(count, "h1") == 1
    pool.release(token("a"))
    assert said(pool.acquire(token("b"), memory_mb=1, devices=2))[0] == "GRANTED"


def test_reap_of_a_silent_hosts_devices_takes_them_out(pool: Pool) -> None:
    """Past its deadline a host takes nothing new; its leases run on to their own end."""
    pool.report((device("gpu-a", 1000, simulated=0),), host="h1")
    pool.report((device("gpu-b", 1000),), host="h2")
    fence = str(granted(pool.acquire(token("a"), host="h1", memory_mb=500)).fence)
    pool.live_on(15001, host="h2")
    assert pool.hash("device:gpu-a")["state"] == "away"
    assert pool.free() == {"gpu-b": 1000}
    assert said(pool.acquire(host="h1", memory_mb=1)) == ["REFUSED", "no_capacity", ""]
    assert pool.renew(token("a"), fence)[0] == "RENEWED"
    assert pool.events()[-1] == "host_away"
    pool.live_on(30001, host="h2")
    assert said(pool.renew(token("a"), fence)) == ["LOST", "expired"]
    pool.live_on(6000, host="h2")
    assert pool.free() == {"gpu-b": 1000}, "neither expiry nor grace brings it back"
    assert pool.number("gpu-a", "withheld_mb") == 0


def test_report_of_a_host_that_was_away_brings_it_back(pool: Pool) -> None:
    """One report with its devices and they are there again, with what is still held on them."""
    pool.report((device("gpu-a", 1000),), host="h1")
    pool.acquire(token("a"), memory_mb=600, ttl_ms=0)
    pool.live_on(20000, host="h2")
    assert pool.free() == {}
    pool.report((device("gpu-a", 1000),), host="h1")
    assert pool.free() == {"gpu-a": 400}
    assert pool.events()[-2:] == ["device", "host_up"]


def test_reap_of_a_silent_host_touches_only_what_is_still_its(pool: Pool) -> None:
    """A device that another host reports now does not go away with its old one."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 1000)), host="old")
    pool.report((device("gpu-a", 1000),), host="new")
    pool.live_on(20000, host="new", devices=(device("gpu-a", 1000),))
    assert pool.free() == {"gpu-a": 1000}
    assert pool.hash("device:gpu-b")["state"] == "away"


def test_reap_of_a_silent_host_with_many_devices_is_done_in_one_call(pool: Pool) -> None:
    """A host goes as a whole, and counts against the bound."""
    pool.report(tuple(device(f"gpu-{n}") for n in range(40)), host="h1", deadline_ms=4000)
    pool.acquire(token("a"), ttl_ms=4001)
    pool.skew(4002)
    assert pool.reap()[4] == 1, "the lease is left for the next call"
    assert pool.free() == {}
    assert pool.reap()[4] == 0
    assert pool.stats()["expired"] == 1


def test_reap_of_a_lease_whose_record_is_gone_stops_nobody(gpu: Pool) -> None:
    """A record that was deleted or evicted behind our back must not fail every later call."""
    now = granted(gpu.acquire(token("live"), memory_mb=100)).now_ms
    gpu.redis.zadd(gpu.keys.deadlines, {token("gone"): now - 1})
    gpu.by_hand()
    assert said(gpu.reap()) == ["REAPED"]
    assert gpu.redis.zscore(gpu.keys.deadlines, token("gone")) is None
    assert gpu.renew(token("live"))[0] == "RENEWED"
    granted(gpu.acquire(memory_mb=100))
