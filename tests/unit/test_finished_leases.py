"""History of finished leases as a client reads it: pages, filters, and what is not legible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import BadRequest, LeaseClient, Store
from agent_sdk.usage import history
from tests.pools import device, granted, token
from tests.usage import DAY_MS, LATE_MS, let, use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.usage.history import LeaseHistory
    from tests.pools import Pool
    from tests.servers import Server


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """Two hosts with a GPU each, with the clock in the test's hand."""
    pool.freeze()
    pool.report((device("gpu-a", 8000),), deadline_ms=DAY_MS)
    pool.report((device("gpu-b", 8000, model="m2"),), host="h2", deadline_ms=DAY_MS)
    return pool


@pytest.fixture
def client(server: Server, lab: Pool) -> Iterator[LeaseClient]:
    with LeaseClient(Store(server.url), pool=lab.keys.pool_name) as client:
        yield client


def finish(pool: Pool, name: str, agent: str = "ann", ms: int = 1000, **ask: Any) -> None:
    """Have a lease that is over, in the history."""
    granted(pool.acquire(token(name), agent, **{"memory_mb": 4000, "ttl_ms": 0} | ask))
    pool.skew(ms)
    pool.release(token(name))
    let(pool, LATE_MS)


def named(found: LeaseHistory) -> list[str]:
    return [x.token for x in found.leases]


def test_finished_lease_is_told_with_all_that_is_known(lab: Pool, client: LeaseClient) -> None:
    """Its time, its share, and what its host has seen; what nobody has told is None."""
    granted(lab.acquire(token("1"), "ann", team="nlp", memory_mb=4000, ttl_ms=0, host="h1"))
    t = let(lab, 5000)
    use(lab, "gpu-a", f"{token('1')}={t}:{t}::1000:")
    let(lab, 5000)
    use(lab, "gpu-a", f"{token('1')}={t}:{t + 5000}:2000:3000:7")
    lab.release(token("1"))
    let(lab, LATE_MS)
    finish(lab, "2", "bob", host="h2", owner="key-1")
    one, two = client.history().leases
    assert (one.token, one.agent, one.team, one.owner) == (token("1"), "ann", "nlp", "")
    assert (one.host, one.model, one.devices) == ("h1", "m1", (("gpu-a", 4000),))
    assert (one.gpus, one.mb, one.outcome, one.held_ms) == (0.5, 4000, "released", 10_000)
    assert (one.known_ms, one.busy_ms, one.peak_mb, one.energy_mj) == (5000, 2000, 3000, 7)
    assert one.gpu_hours == 5000 / 3_600_000
    assert (two.owner, two.waited_ms, two.peak_mb, two.busy_ms) == ("key-1", None, None, None)


def test_pages_go_back_and_on_and_miss_nothing(lab: Pool, client: LeaseClient) -> None:
    """The newest page, the older ones, and all from the beginning, the oldest first in each."""
    for n in range(7):
        finish(lab, f"n{n}", ms=10)
    every = [token(f"n{n}") for n in range(7)]
    newest = client.history(limit=3)
    assert (named(newest), newest.more) == (every[4:], True)
    older = client.history(limit=3, before=newest.first)
    assert (named(older), older.more) == (every[1:4], True)
    oldest = client.history(limit=3, before=older.first)
    assert (named(oldest), oldest.more) == (every[:1], False)

    seen, after = [], history.START
    while True:
        page = client.history(limit=3, after=after)
        seen += named(page)
        after = page.last
        if not page.more:
            break
    assert seen == every
    again = client.history(after=after)
    assert (again.leases, again.last, again.more) == ((), after, False)
    finish(lab, "new")
    assert named(client.history(after=after)) == [token("new")]


def test_program_that_began_before_the_first_lease_misses_none(
    lab: Pool, client: LeaseClient
) -> None:
    """It asks on with `last`, which is there also where nothing was finished yet."""
    page = client.history(limit=3)
    assert (page.leases, page.more) == ((), False)
    for n in range(5):
        finish(lab, f"n{n}", ms=10)
    seen: list[str] = []
    while page.more or not seen:
        page = client.history(limit=3, after=page.last)
        seen += named(page)
    assert seen == [token(f"n{n}") for n in range(5)]


def test_filters_hold_together(
    lab: Pool, client: LeaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By agent, team, host, outcome and time, in parts that are smaller than what is found."""
    monkeypatch.setattr(history, "PART", 2)
    for n in range(6):
        finish(lab, f"n{n}", ("ann", "bob")[n % 2], team=("x", "y")[n % 3 == 0],
               host=("h1", "h2")[n >= 4])  # fmt: skip
    lab.report((device("gpu-a", 8000, simulated=0),), deadline_ms=DAY_MS)
    granted(lab.acquire(token("gone"), "ann", memory_mb=100, ttl_ms=1000, team="x", host="h1"))
    let(lab, 1000 + LATE_MS)
    t = [token(f"n{n}") for n in range(6)]
    for asked, expected in (
        ({"agent": "bob"}, [t[1], t[3], t[5]]), ({"team": "y"}, [t[0], t[3]]),
        ({"host": "h2"}, t[4:]), ({"outcome": "expired"}, [token("gone")]),
        ({"agent": "ann", "team": "x", "host": "h1"}, [t[2], token("gone")]),
        ({"agent": "nobody"}, []),
    ):  # fmt: skip
        assert named(client.history(**asked)) == expected
        assert named(client.history(**asked, after=history.START)) == expected
    ended_ms = client.history(agent="bob").leases[1].ended_at_ms
    assert named(client.history(since=ended_ms, agent="bob")) == [t[3], t[5]]
    assert named(client.history(limit=1, agent="bob")) == [t[5]]


def test_one_reading_looks_at_a_bounded_part(
    lab: Pool, client: LeaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search in vain ends, and says where to go on."""
    monkeypatch.setattr(history, "LOOKED_AT", 2)
    for n in range(5):
        finish(lab, f"n{n}", "ann" if n else "bob", ms=10)
    page = client.history(agent="bob")
    assert (page.leases, page.more) == ((), True)
    page = client.history(agent="bob", before=page.first)
    page = client.history(agent="bob", before=page.first)
    assert (named(page), page.more) == ([token("n0")], False)


def test_entry_that_is_not_legible_hides_no_other(lab: Pool, client: LeaseClient) -> None:
    """A hand has written to the stream."""
    finish(lab, "1")
    for wrong in ({"x": "y"}, {"token": "t", "agent": "a", "gpus": "inf"}):
        lab.redis.xadd(lab.keys.history, wrong)
    finish(lab, "2")
    assert named(client.history()) == [token("1"), token("2")]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"after": "x"}, "after"), ({"before": "1"}, "before"), ({"limit": 0}, "limit"),
     ({"limit": 10**9}, "limit"), ({"after": "1-0", "before": "2-0"}, "exclude"),
     ({"since": "soon"}, "soon"), ({"since": 1.8e9}, "ms since 1970"), ({"after": 7}, "after")],
)  # fmt: skip
def test_question_that_is_wrong_is_refused(
    client: LeaseClient, wrong: dict[str, Any], word: str
) -> None:
    """With the name of what is wrong."""
    with pytest.raises(BadRequest, match=word):
        client.history(**wrong)
