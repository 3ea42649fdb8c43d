"""Usage as a client reads it: what runs, what has just ended, what is in the sums: once each."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import AsyncLeaseClient, BadRequest, LeaseClient, Store
from agent_sdk.errors import LeaseError
from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.usage import reading
from agent_sdk.usage.period import at_ms, day_of, instant
from agent_sdk.verbs.reading import ReadingVerbs
from agent_sdk.verbs.steps import Reckoning
from tests.pools import granted, said, token
from tests.usage import (
    DAY_MS,
    HOUR_MS,
    LATE_MS,
    NOON_MS,
    TODAY,
    at_noon,
    grant,
    leap,
    let,
    release,
    use,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from agent_sdk.usage.groups import Usage
    from tests.pools import Pool
    from tests.servers import Server

READS = 6 - (-31 // reading.DAYS) + 1
"""Pipelines of a reading of 30 days and a part: what it needs, its parts, and a last look."""


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """Two GPUs of two models at noon, with the clock in the test's hand."""
    at_noon(pool)
    return pool


@pytest.fixture
def client(server: Server, lab: Pool) -> Iterator[LeaseClient]:
    with LeaseClient(Store(server.url), pool=lab.keys.pool_name) as client:
        yield client


def one_row(found: Usage) -> dict[str, int]:
    """The sums of the only row, without those that are 0."""
    (row,) = found.rows
    names = ("leases", "running", "held_ms", "gpu_ms", "mb_ms", "known_gpu_ms", "busy_gpu_ms",
             "above_mb_ms", "energy_mj", "waits", "waited_ms")  # fmt: skip
    return {name: getattr(row, name) for name in names if getattr(row, name)}


HOUR = {"held_ms": HOUR_MS, "gpu_ms": HOUR_MS // 2, "mb_ms": 4000 * HOUR_MS}
"""An hour of half a GPU."""


def test_lease_counts_once_while_it_runs_after_its_end_and_in_the_sums(
    lab: Pool, client: LeaseClient
) -> None:
    """The same sums at each of the three places, by who and by where."""
    grant(lab, "1", team="nlp")
    leap(lab, HOUR_MS)
    for by in (("team", "agent", "model"), ("host", "model")):
        assert one_row(client.usage(by=by)) == HOUR | {"running": 1}
    release(lab, "1")
    assert lab.redis.llen(lab.keys.ended) == 1
    for by in (("team", "agent", "model"), ("host", "model")):
        assert one_row(client.usage(by=by)) == HOUR | {"leases": 1}
    let(lab, LATE_MS)
    assert lab.redis.llen(lab.keys.ended) == 0
    for by in (("team", "agent", "model"), ("host", "model")):
        assert one_row(client.usage(by=by)) == HOUR | {"leases": 1}
    (row,) = client.usage(by=("team", "agent", "model")).rows
    assert (row.team, row.agent, row.model, row.host, row.day) == ("nlp", "ann", "m1", None, None)
    (row,) = client.usage(by=("host",)).rows
    assert (row.host, row.hours) == ("h1", (0,) * 12 + (HOUR_MS // 2,) + (0,) * 11)


def test_all_three_places_add_up(lab: Pool, client: LeaseClient) -> None:
    """A folded lease, one that has just ended and one that runs are three, in every grouping."""
    grant(lab, "1", "ann", team="nlp")
    leap(lab, HOUR_MS)
    release(lab, "1")
    let(lab, LATE_MS)
    grant(lab, "2", "bob", team="nlp", host="h1", model="m2")
    grant(lab, "3", "cat", team="vision")
    leap(lab, HOUR_MS)
    release(lab, "2")
    found = client.usage(by=("team",))
    assert [(x.team, x.leases, x.running, x.gpu_ms) for x in found.rows] == [
        ("nlp", 2, 0, HOUR_MS), ("vision", 0, 1, HOUR_MS // 2)
    ]  # fmt: skip
    for by in ((), ("agent",), ("host",), ("model", "day"), ("day", "team", "agent", "model")):
        total = client.usage(by=by).total
        assert (total.leases, total.running, total.gpu_ms) == (2, 1, 3 * HOUR_MS // 2), by
        assert sum(x.gpu_ms for x in client.usage(by=by).rows) == total.gpu_ms
    assert len(client.usage(by=()).rows) == 1


def test_lease_over_midnight_is_split_at_each_place(lab: Pool, client: LeaseClient) -> None:
    """Each day has its part: running, ended and folded; the lease counts on the day of its end."""
    grant(lab, "1")
    leap(lab, 36 * HOUR_MS)

    def days() -> list[tuple[str | None, int, int]]:
        return [(x.day, x.leases, x.held_ms) for x in client.usage(by=("day",)).rows]

    assert days() == [(TODAY, 0, 12 * HOUR_MS), ("2100-03-02", 0, 24 * HOUR_MS)]
    release(lab, "1")
    assert days() == [(TODAY, 0, 12 * HOUR_MS), ("2100-03-02", 1, 24 * HOUR_MS)]
    by_hour = [x.hours for x in client.usage(by=("day", "host")).rows]
    let(lab, LATE_MS)
    assert days() == [(TODAY, 0, 12 * HOUR_MS), ("2100-03-02", 1, 24 * HOUR_MS)]
    assert [x.hours for x in client.usage(by=("day", "host")).rows] == by_hour
    assert by_hour == [(0,) * 12 + (HOUR_MS // 2,) * 12, (HOUR_MS // 2,) * 24]


def test_each_day_of_a_group_is_told_where_it_is_asked_for(lab: Pool, client: LeaseClient) -> None:
    """The same of a lease that runs, has ended, and is in the sums, by who and by where."""
    grant(lab, "1", memory_mb=8000)
    leap(lab, DAY_MS + 12 * HOUR_MS)
    expected = (0, 12 * HOUR_MS, 24 * HOUR_MS)
    grant(lab, "2", agent="bob", model="m2")

    def days() -> list[tuple[int, ...]]:
        groups: tuple[tuple[str, ...], ...] = (("team", "agent"), ("model",), ("host",), ())
        found = [client.usage(by=by, since="2100-02-28", daily=True) for by in groups]
        for usage in found:
            assert usage.total.days == tuple(
                map(sum, zip(*(x.days for x in usage.rows), strict=True))
            )
        return [usage.rows[0].days[:3] for usage in found]

    assert days() == [expected] * 4
    release(lab, "1")
    assert days() == [expected] * 4
    let(lab, LATE_MS)
    assert days() == [expected] * 4
    assert {row.days for row in client.usage(by=("agent",)).rows} == {()}
    assert {row.days for row in client.usage(by=("agent", "day"), daily=True).rows} == {()}


def test_line_of_sums_is_read_the_same_in_any_order(client: LeaseClient, lab: Pool) -> None:
    """In the order of a fold, in another, and among words that are not known."""
    words = ["leases=2", "held_ms=4000", "gpu_ms=3000", "known_gpu_ms=2000", "waits=1",
             "waited_ms=500"]  # fmt: skip
    assert lab
    for line in (" ".join(words), " ".join(reversed(words)), " ".join(["x=1", *words, "y=-1"])):
        lab.redis.hset(lab.keys.usage(TODAY), "nlp ann m1", line)
        assert one_row(client.usage(by=("agent",))) == {
            "leases": 2, "held_ms": 4000, "gpu_ms": 3000, "known_gpu_ms": 2000, "waits": 1,
            "waited_ms": 500,
        }  # fmt: skip
    lab.redis.delete(lab.keys.usage(TODAY))


def test_period_is_of_whole_days_for_what_has_ended_and_exact_for_what_runs(
    lab: Pool, client: LeaseClient
) -> None:
    """A lease that is over has all of the day on which the period begins or ends."""
    grant(lab, "1")
    leap(lab, 2 * DAY_MS)
    now_ms = NOON_MS + 2 * DAY_MS
    found = client.usage(by=(), since=timedelta(hours=30), until=now_ms - HOUR_MS)
    assert (found.since_ms, found.until_ms) == (now_ms - 30 * HOUR_MS, now_ms - HOUR_MS)
    assert (found.first_day, found.last_day) == ("2100-03-02", "2100-03-03")
    assert found.total.held_ms == 29 * HOUR_MS
    release(lab, "1")
    for _ in range(2):
        found = client.usage(by=(), since=timedelta(hours=30), until=now_ms - HOUR_MS)
        assert found.total.held_ms == 36 * HOUR_MS
        assert client.usage(by=(), since=TODAY, until=TODAY).total.held_ms == 12 * HOUR_MS
        let(lab, LATE_MS)


def test_what_hosts_have_seen_counts_at_each_place(lab: Pool, client: LeaseClient) -> None:
    """Busy, idle, unknown, memory above the peak, energy, as the fold reckons them."""
    grant(lab, "1")
    t = let(lab, 10_000)
    use(lab, "gpu-a", f"{token('1')}={t}:{t}::1000:")
    let(lab, 20_000)
    use(lab, "gpu-a", f"{token('1')}={t}:{t + 20_000}:5000:3000:7000")
    let(lab, 10_000)
    seen = {
        "held_ms": 40_000, "gpu_ms": 20_000, "mb_ms": 4000 * 40_000, "known_gpu_ms": 10_000,
        "busy_gpu_ms": 2500, "above_mb_ms": 1000 * 40_000, "energy_mj": 7000,
    }  # fmt: skip
    assert one_row(client.usage()) == seen | {"running": 1}
    release(lab, "1")
    assert one_row(client.usage()) == seen | {"leases": 1}
    let(lab, LATE_MS)
    assert one_row(client.usage()) == seen | {"leases": 1}
    figures = client.usage().total.figures()
    assert figures["busy_gpu_hours"] == round(2500 / HOUR_MS, 6)
    assert figures["idle_gpu_hours"] == round(7500 / HOUR_MS, 6)
    assert figures["unknown_gpu_hours"] == round(10_000 / HOUR_MS, 6)
    assert figures["busy_share"] == 0.25
    assert figures["above_peak_mb_hours"] == round(40_000_000 / HOUR_MS, 6)
    assert (figures["mean_wait_s"], figures["cost"]) == (None, None)


def test_cost_is_by_model_whatever_the_rows_are(lab: Pool, client: LeaseClient) -> None:
    """Prices per model, summed before rows are; models without a price are named."""
    lab.set_policy(price_per_gpu_hour="m1=3,m3=9")
    grant(lab, "1", model="m1")
    grant(lab, "2", model="m2", exclusive=1)
    leap(lab, 2 * HOUR_MS)
    release(lab, "1")
    for by in (("team",), ("host",), ("model",)):
        found = client.usage(by=by)
        assert found.total.cost == 3.0
        assert found.unpriced == ("m2",)
    lab.set_policy(price_per_gpu_hour="m1=3,*=0.5")
    found = client.usage(by=("model",))
    assert (found.total.cost, found.unpriced) == (4.0, ())
    assert {x.model: x.cost for x in found.rows} == {"m1": 3.0, "m2": 1.0}


def test_gang_wait_and_cpu_lease(lab: Pool, client: LeaseClient) -> None:
    """Two devices are two GPU-hours of one lease; a wait counts at the end; a CPU has no GPU."""
    grant(lab, "1", "ann", exclusive=1, model="m1")
    ask: dict[str, Any] = {"model": "m1", "memory_mb": 8000, "ttl_ms": 0, "wait_ms": 60_000}
    assert said(lab.acquire(token("2"), "bob", **ask))[0] == "WAITING"
    let(lab, 5000)
    release(lab, "1")
    granted(lab.acquire(token("2"), "bob", **ask))
    lab.acquire(token("3"), "cat", memory_mb=90_000, on_unavailable="cpu", ttl_ms=0)
    let(lab, 1000)
    release(lab, "2")
    ann, bob, cat = client.usage(by=("agent", "model")).rows
    assert (ann.agent, ann.gpu_ms, ann.waits) == ("ann", 5000, 0)
    assert (bob.gpu_ms, bob.waits, bob.waited_ms, bob.mean_wait_s) == (1000, 1, 5000, 5.0)
    assert (cat.model, cat.held_ms, cat.gpu_ms, cat.running) == ("cpu", 1000, 0, 1)
    by_host = {x.host: x.held_ms for x in client.usage(by=("host",)).rows}
    assert by_host == {"h1": 6000, "-": 1000}


Meddle = dict[int, "Callable[[], object]"]


def read_with(pool: Pool, between: Meddle, by: tuple[str, ...] = (), since: Any = "30d") -> Usage:
    """Read usage; before the pipeline of that number something else happens."""
    steps = reading.read(pool.keys, by, since, None)
    try:
        asked, n = next(steps), 0
        while True:
            between.get(n, lambda: None)()
            pipe = pool.redis.pipeline(transaction=False)
            for command in asked.commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call] # in redis-py
            asked, n = steps.send(Answer(pipe.execute(), 0.0)), n + 1
    except StopIteration as done:
        found: Usage = done.value
        return found


@pytest.mark.parametrize("at", range(READS))
def test_fold_in_the_middle_of_a_reading(lab: Pool, at: int) -> None:
    """At any place, each lease counts once: also one over many days, read in parts."""
    grant(lab, "1", memory_mb=1000)
    leap(lab, 20 * DAY_MS)
    grant(lab, "2", memory_mb=1000)
    leap(lab, HOUR_MS)
    expected = (20 * DAY_MS + HOUR_MS) + HOUR_MS
    release(lab, "1")
    found = read_with(lab, {at: lambda: let(lab, LATE_MS)})
    assert lab.redis.llen(lab.keys.ended) == 0
    running_ms = LATE_MS if at == 0 else 0
    assert (found.total.leases, found.total.running) == (1, 1)
    assert found.total.held_ms in {expected, expected + running_ms}


@pytest.mark.parametrize("at", range(READS))
def test_lease_that_ends_and_is_folded_in_the_middle_of_a_reading(lab: Pool, at: int) -> None:
    """It ran when the reading began: the reading begins anew, and counts it once."""
    grant(lab, "1", memory_mb=1000)
    leap(lab, 20 * DAY_MS)
    leap(lab, HOUR_MS)

    def over() -> None:
        release(lab, "1")
        let(lab, LATE_MS)

    found = read_with(lab, {at: over})
    assert found.total.held_ms == 20 * DAY_MS + HOUR_MS
    assert found.total.leases + found.total.running == 1


@pytest.mark.parametrize("at", range(READS))
def test_lease_that_ends_in_the_middle_of_a_reading(lab: Pool, at: int) -> None:
    """Its line comes while parts are read: it counts once, as it ran or as it ended."""
    grant(lab, "1", memory_mb=1000)
    leap(lab, 20 * HOUR_MS)
    found = read_with(lab, {at: lambda: release(lab, "1"), at + 1: lambda: let(lab, LATE_MS)})
    assert found.total.held_ms == 20 * HOUR_MS
    assert found.total.leases + found.total.running == 1


def test_leases_that_end_in_every_reading_are_counted_in_the_last(lab: Pool) -> None:
    """A pool too quick for each try is read all the same, and nothing counts twice."""
    for n in range(8):
        grant(lab, f"n{n}", memory_mb=100)
    leap(lab, HOUR_MS)
    turn = iter(range(8))

    def over() -> None:
        if (n := next(turn, None)) is not None:
            release(lab, f"n{n}")
            let(lab, LATE_MS)

    found = read_with(lab, dict.fromkeys(range(4, 40), over))
    assert found.total.leases + found.total.running <= 8
    assert found.total.held_ms >= 7 * HOUR_MS


def test_what_a_hand_has_spoilt_is_passed_over(lab: Pool, client: LeaseClient) -> None:
    """Fields, lines, records, keys of another type: what is legible counts, nothing is raised."""
    grant(lab, "1")
    leap(lab, HOUR_MS)
    release(lab, "1")
    let(lab, LATE_MS)
    grant(lab, "2")
    leap(lab, HOUR_MS)
    sums, redis = lab.keys.usage(TODAY), lab.redis
    for field in ("", "x", "a b", " ", "a  ", "\x1b[2J x m1"):
        redis.hset(sums, field, "gpu_ms=x leases=-1 held_ms=")
    wrong = f"token={token('8')} agent=a gpus=nan granted_at_ms=1 ended_at_ms=2 on h|m"
    redis.rpush(lab.keys.ended, "junk", "", "token= on |", f"token={token('9')} on h1|m1", wrong)
    redis.hset(lab.keys.use("gpu-a"), token("2"), "known_ms=x busy_ms peak_mb=-")
    redis.set(lab.keys.usage("2100-02-28"), "a text")
    redis.set(lab.keys.use("gpu-b"), "a text")
    found = client.usage(by=("agent",))
    (ann,) = [row for row in found.rows if row.agent == "ann"]
    assert (ann.leases, ann.running, ann.held_ms) == (1, 1, 2 * HOUR_MS)
    assert found.total.held_ms == 2 * HOUR_MS
    redis.hset(lab.keys.record(token("2")), "granted_at_ms", "soon")
    assert client.usage(by=()).total.running == 0
    redis.hset(lab.keys.record(token("2")), "granted_at_ms", str(NOON_MS + HOUR_MS))
    redis.delete(lab.keys.ended, lab.keys.use("gpu-b"))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"by": ("agent", "host")}, "history"), ({"by": ("team", "host")}, "team and host"),
        ({"by": ("user",)}, "user"), ({"since": "soon"}, "2026-11-30"),
        ({"since": "1d", "until": "2d"}, "begin"), ({"since": date(2200, 1, 1)}, "before now"),
        ({"since": "2026-13-01"}, "is no time"), ({"since": 1.8e9}, "ms since 1970"),
        ({"since": None}, "None is no time"), ({"since": "1d", "until": [1]}, "is no time"),
    ],
)  # fmt: skip
def test_question_that_is_wrong_is_refused_in_words(
    client: LeaseClient, wrong: dict[str, Any], word: str
) -> None:
    """The words that are kept together, the forms of a time."""
    with pytest.raises(BadRequest, match=word):
        client.usage(**wrong)


def test_days_that_are_kept_no_more_are_not_read(lab: Pool, client: LeaseClient) -> None:
    """A period from long ago begins where the policy's memory begins."""
    lab.set_policy(usage_days=3)
    found = client.usage(by=(), since="1000d")
    assert (found.first_day, found.since_ms % DAY_MS) == ("2100-02-26", 0)
    assert found.now_ms - found.asked_ms == 1000 * DAY_MS
    gone = client.usage(by=(), since=0, until="2000-01-01")
    assert gone.rows == ()
    assert (gone.first_day, gone.last_day) == ("2000-01-01", "2000-01-01")
    assert gone.asked_ms < gone.since_ms == gone.until_ms


def test_lease_of_the_next_day_is_in_no_period_before(lab: Pool, client: LeaseClient) -> None:
    """One that began at midnight, to the ms, while it runs and when it has ended."""
    leap(lab, 12 * HOUR_MS)
    grant(lab, "1")
    assert client.usage(by=()).total.running == 1  # at midnight, too
    leap(lab, HOUR_MS)

    def days(of: str) -> list[tuple[str | None, int, int, int]]:
        found = client.usage(by=("day",), since=of, until=of).rows
        return [(x.day, x.leases, x.running, x.held_ms) for x in found]

    assert days(TODAY) == []
    assert days("2100-03-02") == [("2100-03-02", 0, 1, HOUR_MS)]
    release(lab, "1")
    assert days(TODAY) == []
    assert days("2100-03-02") == [("2100-03-02", 1, 0, HOUR_MS)]


def test_both_clients_read_the_same(lab: Pool, client: LeaseClient, server: Server) -> None:
    """And a pool that is not there yet has no use."""
    grant(lab, "1")
    leap(lab, HOUR_MS)
    release(lab, "1")
    let(lab, LATE_MS)

    async def others() -> tuple[Usage, int, Usage]:
        async with AsyncLeaseClient(Store(server.url), pool=lab.keys.pool_name) as other:
            both = await asyncio.gather(other.usage(), other.history())
        async with AsyncLeaseClient(Store(server.url), pool="none-is-there") as empty:
            return both[0], len(both[1].leases), await empty.usage()

    found, finished, empty = asyncio.run(others())
    assert found == client.usage()
    assert (finished, empty.rows, empty.total.leases) == (1, (), 0)


class Threads(AsyncLeaseClient):
    """Client with a verb that tells which threads reckon for it, and what it failed with."""

    @Reckoning
    def threads(self, command: str) -> Generator[Any, Any, tuple[set[int], str]]:
        seen, failed = {threading.get_ident()}, ""
        try:
            yield Read(((command,),))
        except LeaseError as error:
            failed = error.code
        seen.add(threading.get_ident())
        return seen, failed


def test_event_loop_is_not_held_while_sums_are_reckoned(server: Server) -> None:
    """The steps of such a verb run in other threads than the loop; a failed read reaches them."""

    async def asked() -> list[tuple[set[int], str]]:
        async with Threads(Store(server.url)) as client:
            return [await client.threads("TIME"), await client.threads("NO-COMMAND")]

    (fine, nothing), (failing, code) = asyncio.run(asked())
    assert threading.get_ident() not in fine | failing
    assert (nothing, code) == ("", "protocol_mismatch")
    assert isinstance(vars(ReadingVerbs)["usage"], Reckoning)


def test_times_are_understood() -> None:
    """Before now, days, and times with and without a zone."""
    now_ms = NOON_MS
    assert at_ms("90m", now_ms) == now_ms - 90 * 60_000
    assert at_ms(instant("2w"), now_ms) == now_ms - 14 * DAY_MS
    assert at_ms(TODAY, now_ms) == now_ms - 12 * HOUR_MS
    assert at_ms(date(2100, 3, 1), now_ms, to_the_end=True) == now_ms + 12 * HOUR_MS
    assert at_ms(f"{TODAY}T12:00", now_ms) == now_ms == at_ms(f"{TODAY} 13:00+01:00", now_ms)
    assert at_ms("999999999d", now_ms) == at_ms("999999999w", now_ms) == 0
    assert day_of(now_ms) == TODAY


@pytest.mark.parametrize("seed", range(3))
def test_any_life_of_a_pool_adds_up(lab: Pool, client: LeaseClient, seed: int) -> None:
    """Leases that come, go and are folded in any order: by day and agent as a ledger has them."""
    rng, running = random.Random(seed), dict[str, tuple[str, int]]()
    held: dict[tuple[str, str], int] = defaultdict(int)
    ended: dict[str, int] = defaultdict(int)

    def spend(into: dict[tuple[str, str], int], agent: str, from_ms: int, until_ms: int) -> None:
        while from_ms < until_ms:
            to_ms = min(until_ms, from_ms - from_ms % DAY_MS + DAY_MS)
            into[day_of(from_ms), agent] += to_ms - from_ms
            from_ms = to_ms

    for n in range(40):
        what, now_ms = rng.random(), int(lab.reap()[1])
        if what < 0.4 and len(running) < 14:
            agent = rng.choice(("ann", "bob", "cat"))
            grant(lab, f"n{n}", agent, memory_mb=500)
            running[f"n{n}"] = agent, now_ms
        elif what < 0.7 and running:
            name = rng.choice(sorted(running))
            agent, from_ms = running.pop(name)
            release(lab, name)
            ended[agent] += 1
            spend(held, agent, from_ms, now_ms)
        elif what < 0.8:
            leap(lab, rng.randrange(3) * DAY_MS // 2)
        else:
            let(lab, rng.randrange(15_000))
        expected, now_ms = held.copy(), int(lab.hash("pool")["last_ms"])
        for agent, from_ms in running.values():
            spend(expected, agent, from_ms, now_ms)
        found = client.usage(by=("day", "agent"))
        told = {(row.day, row.agent): row.held_ms for row in found.rows if row.held_ms}
        assert told == {key: ms for key, ms in expected.items() if ms}
        by_agent = client.usage(by=("agent",)).rows
        assert {row.agent: row.leases for row in by_agent if row.leases} == ended
        assert found.total.running == len(running)
        assert found.total.held_ms == client.usage(by=("host",)).total.held_ms
