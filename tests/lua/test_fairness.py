"""Fairness as properties: who is served, in which order, whatever the requests are.

Every example is a pool of its own on one real server, whose time the test moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit import audit
from tests.lua.queues import Queue
from tests.pools import token

if TYPE_CHECKING:
    from tests.servers import Server


EXAMPLES = settings(
    max_examples=60, deadline=None, derandomize=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis: the other tests show that the servers agree."""
    return own


def drain_queue(queue: Queue, held: list[str], most: int = 200) -> None:
    """Release one holder after another, oldest first, until everybody was served."""
    for _ in range(most):
        if len(queue.served) == len(queue.asks):
            return
        queue.pool.release(token(held.pop(0)))
        before = len(queue.served)
        queue.poll_all()
        held += queue.served[before:]
    raise AssertionError(f"not served: {set(queue.asks) - set(queue.served)}")


@EXAMPLES
@given(sizes=st.lists(st.integers(513, 1000), min_size=2, max_size=12))
def test_within_a_queue_the_first_comes_head(server: Server, sizes: list[int]) -> None:
    """FIFO: of those who ask alike nobody is served before one who came earlier."""
    queue = Queue.on(server, 1000)
    for n, mb in enumerate(sizes):
        queue.wait(f"w{n}", memory_mb=mb)
    drain_queue(queue, ["hold-h1-0"])
    assert queue.served == [f"w{n}" for n in range(len(sizes))]
    queue.end()


@EXAMPLES
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9000)), min_size=2, max_size=10)
)
def test_priority_is_worth_its_minutes_and_no_more(
    server: Server, arrivals: list[tuple[int, int]]
) -> None:
    """Served by the time of joining less a minute for each step: overtaking has a bound."""
    queue = Queue.on(server, 1000)
    ranks: dict[str, tuple[int, str]] = {}
    for n, (priority, later_ms) in enumerate(arrivals):
        queue.pool.skew(later_ms)
        queue.poll_all()
        queue.wait(f"w{n}", memory_mb=900, priority=priority)
        joined = int(queue.pool.hash(f"record:{token(f'w{n}')}")["enqueued_ms"])
        ranks[f"w{n}"] = (joined - priority * 60_000, token(f"w{n}"))
    drain_queue(queue, ["hold-h1-0"])
    assert queue.served == sorted(ranks, key=lambda name: ranks[name])
    queue.end()


@EXAMPLES
@given(
    requests=st.lists(
        st.fixed_dictionaries({
            "memory_mb": st.integers(1, 3000), "host": st.sampled_from(["*", "h1", "h2"]),
            "exclusive": st.sampled_from([0, 0, 1]), "priority": st.integers(0, 3),
        }),
        min_size=2, max_size=14,
    ),
)  # fmt: skip
def test_everybody_is_served_once_and_nobody_waits_beside_what_fits(
    server: Server, requests: list[dict[str, Any]]
) -> None:
    """L1, S11: after every step no head could have what is free; in the end all were served."""
    queue = Queue.on(server, 3000, 2000)
    queue.host("h2", 3000)
    held = ["hold-h1-0", "hold-h1-1", "hold-h2-0"]
    for n, ask in enumerate(requests):
        queue.wait(f"w{n}", **ask)
        audit(queue.pool.redis, queue.pool.keys)
    for _ in range(100):
        if len(queue.served) == len(requests):
            break
        if held:
            queue.pool.release(token(held.pop(0)))
        audit(queue.pool.redis, queue.pool.keys)
        before = len(queue.served)
        queue.poll_all()
        held += queue.served[before:]
        queue.pool.skew(3000)
        queue.poll_all()
    assert sorted(queue.served) == sorted(queue.asks)
    assert queue.pool.stats()["granted"] == len(requests) + 3
    queue.end()


@EXAMPLES
@given(
    small=st.lists(st.integers(50, 400), min_size=30, max_size=30),
    large=st.integers(700, 1000),
)
def test_large_is_not_starved_by_small_ones(server: Server, small: list[int], large: int) -> None:
    """L3: whatever stream of small leases of 8 s, the large one has a device within 45 s."""
    queue = Queue.on(server, 1000)
    queue.pool.release(token("hold-h1-0"))
    queue.wait("s-first", memory_mb=400, ttl_ms=8000)
    assert queue.wait("large", memory_mb=large) == "WAITING"
    for n, mb in enumerate(small):
        queue.pool.skew(1500)
        queue.pool.acquire(token(f"s{n}"), f"s{n}", memory_mb=mb, ttl_ms=8000)
        if n % 2 and queue.poll("large") == "GRANTED":
            break
    assert "large" in queue.served
    queue.end()


@EXAMPLES
@given(dead=st.integers(1, 6), alive=st.integers(1, 4))
def test_dead_waiters_delay_their_queue_by_one_claim(server: Server, dead: int, alive: int) -> None:
    """L4: however many died in front, the first that lives is served within 10 s of room."""
    queue = Queue.on(server, 1000)
    for n in range(dead):
        queue.wait(f"dead{n}", memory_mb=900)
    for n in range(alive):
        queue.wait(f"live{n}", memory_mb=900)
    queue.pool.release(token("hold-h1-0"))
    for _ in range(4):
        queue.pool.skew(2500)
        for n in range(alive):
            queue.poll(f"live{n}")
    queue.pool.skew(1)
    for n in range(alive):
        queue.poll(f"live{n}")
    assert queue.served == ["live0"]
    queue.end()


@EXAMPLES
@given(
    waiters=st.integers(8, 12), mb=st.integers(500, 1000),
    free_first=st.booleans(), alike=st.booleans(),
)  # fmt: skip
def test_waiters_for_a_full_host_do_not_delay_one_for_a_free_host(
    server: Server, waiters: int, mb: int, free_first: bool, alike: bool
) -> None:
    """Eight in front of another host's device are nothing to the ninth, who gets his."""
    queue = Queue.on(server, 1000)
    if free_first:
        queue.host("h2", 1000, full=False)
    for n in range(waiters):
        assert queue.wait(f"w{n}", memory_mb=mb, host="h1") == "WAITING"
    if not free_first:
        queue.host("h2", 1000, full=False)
    assert queue.wait("ninth", memory_mb=mb if alike else 1, host="h2") == "GRANTED"
    queue.end()


@EXAMPLES
@given(data=st.data(), count=st.integers(2, 8))
def test_giving_up_in_any_order_serves_the_rest(
    server: Server, data: st.DataObject, count: int
) -> None:
    """A waiter that leaves, waiting or offered, hands on; the others are served in their order."""
    queue = Queue.on(server, 1000)
    for n in range(count):
        queue.wait(f"w{n}", memory_mb=900)
    leaving = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    early = {n for n in leaving if data.draw(st.booleans())}
    for n in early:
        queue.pool.release(token(f"w{n}"))
    queue.pool.release(token("hold-h1-0"))
    for n in leaving - early:
        queue.pool.release(token(f"w{n}"))
    for n in leaving:
        del queue.asks[f"w{n}"]
    queue.poll_all()
    held = list(queue.served)
    while len(queue.served) < len(queue.asks):
        queue.pool.release(token(held.pop()))
        before = len(queue.served)
        queue.poll_all()
        held += queue.served[before:]
    assert queue.served == [f"w{n}" for n in range(count) if n not in leaving]
    queue.end()
