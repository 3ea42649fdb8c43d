"""Teams: sums, quotas, limits of requests, and the order between those that wait."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.audit import audit
from tests.pools import Pool, device, granted, said, token

DAY_MS = 24 * 3600 * 1000


def wait(pool: Pool, name: str, **ask: Any) -> list[Any]:
    """Wait, or poll, under a token of that name."""
    return said(pool.acquire(token(name), name, wait_ms=60_000, **ask))


def states(pool: Pool, *names: str) -> dict[str, str]:
    """The state of each record; what has none is left out."""
    found = {name: pool.hash(f"record:{token(name)}").get("state", "") for name in names}
    return {name: state for name, state in found.items() if state}


@pytest.fixture
def eight(pool: Pool) -> Pool:
    """One GPU of 8,100 MiB that is to be leased, for teams a and b."""
    pool.report((device("gpu-a", 8100),), deadline_ms=DAY_MS)
    return pool


def test_sums_of_teams_and_keys_are_those_of_their_leases(eight: Pool) -> None:
    """By team and by key as by agent, whatever names a key's agents take."""
    granted(eight.acquire(token("1"), "ann", team="a", owner="bot", memory_mb=100))
    granted(eight.acquire(token("2"), "bob", team="a", owner="bot", memory_mb=200))
    granted(eight.acquire(token("3"), "ann", memory_mb=400))
    row = eight.hash("agents")
    assert (row["team a"], row["team a#leases"]) == ("300", "2")
    assert (row["key bot"], row["key bot#leases"]) == ("300", "2")
    assert (row["team default"], row["ann"]) == ("400", "500")
    eight.release(token("1"))
    eight.release(token("2"))
    row = eight.hash("agents")
    assert not {name for name in row if name.startswith(("team a", "key bot"))}


def test_key_gets_no_more_by_inventing_names(eight: Pool) -> None:
    """The caps of an agent are those of its API key too, in leases, MiB and waiters."""
    eight.policy(max_leases_per_agent=2, max_waiters_per_agent=1)
    granted(eight.acquire(token("1"), "bot-1", owner="bot", memory_mb=100))
    granted(eight.acquire(token("2"), "bot-2", owner="bot", memory_mb=100))
    assert said(eight.acquire(token("3"), "bot-3", owner="bot")) == ["REFUSED", "limit", "key bot"]
    granted(eight.acquire(token("4"), "other", owner="other", memory_mb=100))
    eight.policy(max_leases_per_agent=9, max_memory_per_agent_mb=300)
    refused = said(eight.acquire(token("3"), "bot-3", owner="bot", memory_mb=200))
    assert refused == ["REFUSED", "agent_cap", "key bot"]
    assert wait(eight, "w1", owner="bot", memory_mb=200)[0] == "WAITING"
    full = said(eight.acquire(token("w2"), "w2", owner="bot", memory_mb=200, wait_ms=9000))
    assert full == ["REFUSED", "limit", "key bot"]
    eight.release(token("1"))  # its sum fell: the capped one is offered what it asks
    assert states(eight, "w1") == {"w1": "offered"}


def test_teams_that_nobody_named_are_refused_once_teams_have_policies(eight: Pool) -> None:
    """A mistyped team is told so; the default team is always there."""
    granted(eight.acquire(token("1"), team="typo", memory_mb=100))
    assert said(eight.set_teams(a="nominal_mb=4000"))[0] == "POLICY"
    refused = said(eight.acquire(token("2"), team="typo", memory_mb=100))
    assert refused == ["REFUSED", "team_unknown", "typo"]
    granted(eight.acquire(token("3"), memory_mb=100))


@pytest.mark.parametrize(
    ("line", "ask", "limit"),
    [
        ("max_priority=3", {"priority": 4}, "max_priority=3"),
        ("max_ttl_s=20", {}, "max_ttl_s=20"),
        ("max_ttl_s=20", {"ttl_ms": 0}, "max_ttl_s=20"),
        ("max_hold_s=60", {"max_hold_ms": 61_000}, "max_hold_s=60"),
        ("nominal_mb=500 borrow_mb=300", {"memory_mb": 801}, "most_mb=800"),
        ("nominal_mb=4000 borrow_mb=100", {"exclusive": 1}, "most_mb=4100"),
    ],
)
def test_request_that_its_team_may_never_have_is_refused_by_name(
    eight: Pool, line: str, ask: dict[str, Any], limit: str
) -> None:
    """Also where it would wait; the same request of another team is granted."""
    eight.set_teams(a=line, b="weight=1")
    asked = {"memory_mb": 100} | ask
    for wait_ms in (0, 9000):
        refused = said(eight.acquire(token("1"), team="a", wait_ms=wait_ms, **asked))
        assert refused == ["REFUSED", "team_limit", limit]
    granted(eight.acquire(token("2"), team="b", **asked))


def test_team_has_a_cap_of_leases_and_waiters(eight: Pool) -> None:
    """Each refusal names the team."""
    eight.set_teams(a="max_leases=1 max_waiters=1 nominal_mb=8100")
    granted(eight.acquire(token("1"), "ann", team="a", memory_mb=8000))
    assert said(eight.acquire(token("2"), "bob", team="a")) == ["REFUSED", "limit", "team a"]
    granted(eight.acquire(token("3"), "cat", memory_mb=100))


def test_time_limit_of_a_team_is_the_default_of_its_leases(eight: Pool) -> None:
    """Renewals stop there; its holder extends no further, an operator does."""
    eight.set_teams(a="max_hold_s=50")
    eight.freeze()
    got = granted(eight.acquire(token("1"), team="a", memory_mb=100))
    eight.skew(10_000)
    assert said(eight.renew(token("1")))[1] == got.now_ms + 40_000
    eight.skew(20_000)
    assert said(eight.renew(token("1")))[1] == got.now_ms + 50_000
    refused = said(eight.extend(token("1"), 30_000, by=""))
    assert refused == ["REFUSED", "team_limit", "max_hold_s=50"]
    assert said(eight.extend(token("1"), 60_000)) == ["EXTENDED", got.now_ms + 90_000]
    assert said(eight.renew(token("1")))[1] == got.now_ms + 60_000


@pytest.mark.parametrize("many", [False, True])
def test_renewal_adds_no_more_than_its_team_may_ask_for(eight: Pool, many: bool) -> None:
    """It takes away nothing that a lease had before; of other teams it adds what is asked."""

    def left_ms(name: str, fence: int, ttl_ms: int | str) -> int:
        if many:
            reply = eight.renew_many((token(name), fence, ttl_ms))
            return int(said(reply)[2]) - int(reply[1])
        return int(said(eight.renew(token(name), str(fence), ttl_ms))[2])

    eight.freeze()
    before = granted(eight.acquire(token("1"), team="a", memory_mb=100, ttl_ms=90_000)).fence
    endless = granted(eight.acquire(token("2"), team="a", memory_mb=100, ttl_ms=0)).fence
    eight.set_teams(a="max_ttl_s=20", b="weight=1")
    after = granted(eight.acquire(token("3"), team="a", memory_mb=100, ttl_ms=10_000)).fence
    other = granted(eight.acquire(token("4"), team="b", memory_mb=100, ttl_ms=10_000)).fence
    eight.skew(5000)
    assert left_ms("3", after, "") == left_ms("3", after, 10_000) == 10_000
    assert left_ms("3", after, 15_000) == 15_000
    assert left_ms("3", after, 600_000) == left_ms("3", after, 0) == 20_000
    assert left_ms("1", before, 90_000) == left_ms("1", before, 600_000) == 90_000
    assert left_ms("2", endless, 0) > 600_000
    assert left_ms("4", other, 600_000) == 600_000


def test_default_team_without_a_policy_borrows_before_others_as_well(pool: Pool) -> None:
    """Memory that it holds is in no quota, or borrowed: no other team borrows it again."""
    pool.report((device("gpu-a", 8000),), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=4000 lend_mb=1000", b="weight=1")
    granted(pool.acquire(token("1"), memory_mb=3000))
    refused = said(pool.acquire(token("2"), team="b", memory_mb=2001))
    assert refused == ["REFUSED", "agent_cap", "team b"]
    granted(pool.acquire(token("3"), team="b", memory_mb=2000))
    granted(pool.acquire(token("4"), team="a", memory_mb=3000))


def test_borrowed_memory_ends_at_what_others_lend(pool: Pool) -> None:
    """The part of a quota that is not lent stays free, also while its team has nothing."""
    pool.report(
        (device("gpu-a", 4100, system_mb=100), device("gpu-b", 4100, index=1, system_mb=100)),
        deadline_ms=DAY_MS,
    )
    assert pool.hash("pool")["capacity_mb"] == "8000"
    pool.set_teams(a="nominal_mb=4000 lend_mb=1000", b="nominal_mb=2000")
    granted(pool.acquire(token("1"), "b1", team="b", memory_mb=4000))
    refused = said(pool.acquire(token("2"), "b2", team="b", memory_mb=1100))
    assert refused == ["REFUSED", "agent_cap", "team b"]
    granted(pool.acquire(token("2"), "b2", team="b", memory_mb=1000))
    granted(pool.acquire(token("3"), "a1", team="a", memory_mb=3000))
    audit(pool.redis, pool.keys)


def test_divided_gpu_adds_nothing_to_what_others_lend(pool: Pool) -> None:
    """Its parts are the memory; it counts again once it is whole, and not while it is lost."""

    def capacity_mb() -> int:
        audit(pool.redis, pool.keys)
        return int(pool.hash("pool")["capacity_mb"])

    parts = [device(f"mig-{n}", 4000, model="MIG", parent="gpu-a") for n in range(2)]
    pool.report((device("gpu-a", 9000, state="mig"), *parts), deadline_ms=DAY_MS)
    assert capacity_mb() == 8000
    pool.set_teams(a="nominal_mb=4000 lend_mb=0", b="weight=1")
    granted(pool.acquire(token("1"), "b1", team="b", memory_mb=4000))
    refused = said(pool.acquire(token("2"), "b2", team="b", memory_mb=4000))
    assert refused == ["REFUSED", "agent_cap", "team b"]
    granted(pool.acquire(token("3"), "a1", team="a", memory_mb=4000))
    for state in ("lost", "error", "mig"):
        pool.report((device("gpu-a", 9000, state=state), *parts), deadline_ms=DAY_MS)
        assert capacity_mb() == 8000, state
    pool.report((device("gpu-a", 9500, state="mig"), *parts), host="h2", deadline_ms=DAY_MS)
    assert capacity_mb() == 8000, "the card was moved"
    pool.release(token("1"))
    pool.release(token("3"))
    for part in parts:
        pool.forget(part[0])
    pool.report((device("gpu-a", 9500),), host="h2", deadline_ms=DAY_MS)
    assert capacity_mb() == 9500
    pool.report((device("gpu-a", 9500, state="lost"),), host="h2", deadline_ms=DAY_MS)
    assert capacity_mb() == 9500
    pool.report((device("gpu-a", 9500, state="mig"),), host="h2", deadline_ms=DAY_MS)
    assert capacity_mb() == 0
    pool.forget("gpu-a")
    assert capacity_mb() == 0


def test_divided_gpu_that_an_older_version_counted_is_counted_right(pool: Pool) -> None:
    """With its next report, also one of which nothing is new."""
    pool.report((device("gpu-a", 9000, state="mig"),), deadline_ms=DAY_MS)
    pool.redis.hdel(f"{pool.keys.base}:device:gpu-a", "divided")
    pool.redis.hset(pool.keys.pool, "capacity_mb", 9000)
    pool.report((("gpu-a", {"state": "mig", "used_mb": 0, "same": 1}),), deadline_ms=DAY_MS)
    assert pool.hash("pool")["capacity_mb"] == "0"


def test_own_quota_comes_before_borrowers(eight: Pool) -> None:
    """A head within its team's nominal quota goes first, though it came last."""
    eight.set_teams(a="nominal_mb=4000", b="nominal_mb=2000")
    granted(eight.acquire(token("b1"), "b1", team="b", memory_mb=8000))
    assert wait(eight, "b2", team="b", memory_mb=4000)[0] == "WAITING"
    eight.skew(1000)
    assert wait(eight, "a1", team="a", memory_mb=4000)[0] == "WAITING"
    eight.release(token("b1"))
    assert states(eight, "a1", "b2") == {"a1": "offered", "b2": "offered"}
    eight.release(token("a1"))
    eight.release(token("b2"))
    granted(eight.acquire(token("b3"), "b3", team="b", memory_mb=8000))
    assert wait(eight, "b4", team="b", memory_mb=5000)[0] == "WAITING"
    assert wait(eight, "a2", team="a", memory_mb=3500)[0] == "WAITING"
    eight.release(token("b3"))
    assert states(eight, "a2", "b4") == {"a2": "offered", "b4": "waiting"}


def test_borrowers_go_by_what_their_team_has_used_by_its_weight(eight: Pool) -> None:
    """The team with the smaller share goes first, though it came last."""
    eight.set_teams(a="weight=1", b="weight=1")
    granted(eight.acquire(token("a0"), "a0", team="a", memory_mb=8000, ttl_ms=0))
    eight.live_on(60_000, devices=())
    assert wait(eight, "a1", team="a", memory_mb=8000)[0] == "WAITING"
    eight.skew(1000)
    assert wait(eight, "b1", team="b", memory_mb=8000)[0] == "WAITING"
    eight.release(token("a0"))
    assert states(eight, "a1", "b1") == {"a1": "waiting", "b1": "offered"}


@pytest.mark.parametrize("reserves", ["a1", "b1"])
def test_reserved_device_goes_by_the_order_between_teams(eight: Pool, reserves: str) -> None:
    """The team with the smaller share goes first, whichever of them has reserved the GPU."""
    eight.set_teams(a="weight=1", b="weight=1")
    granted(eight.acquire(token("a0"), "a0", team="a", memory_mb=8000, ttl_ms=0))
    eight.live_on(60_000)
    polling = ("a1",) if reserves == "a1" else ("a1", "b1")
    for _ in range(9):
        for name in polling:
            wait(eight, name, team=name[0], memory_mb=8000)
        eight.live_on(5000)
    wait(eight, "b1", team="b", memory_mb=8000)
    assert eight.hash("device:gpu-a")["reserved_for"] == token(reserves)
    eight.release(token("a0"))
    assert states(eight, "a1", "b1") == {"a1": "waiting", "b1": "offered"}


def test_head_takes_what_is_reserved_for_a_team_that_comes_after_its_own(pool: Pool) -> None:
    """Both ask for two whole GPUs: the team with the smaller share collects and keeps them."""
    gpus = (device("gpu-a", 4000), device("gpu-b", 4000, index=1))
    pool.report(gpus, deadline_ms=DAY_MS)
    pool.set_teams(a="weight=1", b="weight=1")
    asks = {name: {"team": name[0], "memory_mb": 4000} for name in ("b0", "b9")}
    asks |= {name: {"team": name[0], "memory_mb": 4000, "devices": 2} for name in ("b1", "a1")}
    for name in ("b0", "b9"):
        granted(pool.acquire(token(name), name, ttl_ms=0, **asks[name]))
    pool.live_on(120_000)

    def poll(ms: int, *names: str) -> set[str]:
        while ms > 0:
            pool.live_on(5000)
            ms -= 5000
            for name in names:
                wait(pool, name, **asks[name])
        return {pool.hash(f"device:{uuid}")["reserved_for"].strip("-") for uuid, _ in gpus}

    assert poll(40_000, "b1") == {"b1"}
    assert poll(20_000, "b1", "a1") == {"b1"}, "it has not waited for 30 s yet"
    assert poll(20_000, "b1", "a1") == {"a1"}
    assert "reserved" not in pool.hash(f"record:{token('b1')}")
    pool.release(token("b0"))
    assert poll(20_000, "b1", "a1") == {"a1"}
    pool.release(token("b9"))
    assert states(pool, "a1", "b1") == {"a1": "offered", "b1": "waiting"}
    audit(pool.redis, pool.keys)


def use_of(pool: Pool, team: str) -> float:
    """MiB-seconds of a team, as they stand."""
    return float(pool.hash("agents")[f"team {team}#use"].partition("@")[0])


@pytest.mark.parametrize(("half_life_s", "seconds"), [(600, 600), (600, 60), (86_400, 3000)])
def test_use_decays_exactly_without_a_period(eight: Pool, half_life_s: int, seconds: int) -> None:
    """F1, at each change alone: however many changes there are, it comes to the same."""
    eight.policy(half_life_s=half_life_s)
    eight.set_teams(a="weight=1")
    eight.freeze()
    granted(eight.acquire(token("a"), "a", team="a", memory_mb=1000, ttl_ms=0))
    for n in range(6):
        eight.live_on(seconds * 1000 // 6)
        granted(eight.acquire(token(f"n{n}"), "n", team="a", memory_mb=1, ttl_ms=0))
        eight.release(token(f"n{n}"))
    k = 2 ** (-seconds / half_life_s)
    assert use_of(eight, "a") == pytest.approx(1000 * half_life_s / math.log(2) * (1 - k), rel=1e-4)
    eight.release(token("a"))
    before = use_of(eight, "a")
    eight.live_on(half_life_s * 1000 // 6)
    granted(eight.acquire(token("z"), "z", team="a", memory_mb=1, ttl_ms=0))
    assert use_of(eight, "a") == pytest.approx(before * 2 ** (-1 / 6), rel=1e-3)


def test_policy_of_teams_is_written_as_one_or_not_at_all(eight: Pool) -> None:
    """Another version in between, a field that is none, and SAFE_MODE leave all as it was."""
    version = said(eight.set_teams(a="weight=2", b="weight=1"))[1]
    for line in ("weight=x", "weight=10001", "colour=1", "max_priority=10"):
        assert said(eight.set_teams(a="weight=3", b=line))[:2] == ["REFUSED", "bad_request"]
    late = said(eight.set_teams(version - 1, a="weight=4"))
    assert late == ["REFUSED", "conflict", str(version)]
    assert eight.hash("teams") == {"a": "weight=2", "b": "weight=1"}
    assert said(eight.set_teams(version, c="weight=4")) == ["POLICY", version + 1]
    assert eight.hash("teams") == {"c": "weight=4"}
    eight.set_policy(safe_mode=1)
    assert said(eight.set_teams())[:2] == ["REFUSED", "safe_mode"]
    eight.set_policy(safe_mode=0)
    assert said(eight.set_teams())[0] == "POLICY"
    assert eight.hash("pool")["teams"] == "0"


def test_use_is_whole_where_one_call_ends_one_lease_and_hands_on(eight: Pool) -> None:
    """Use until the end counts, also when another agent of the team gets the memory."""
    eight.set_teams(a="weight=1")
    eight.policy(half_life_s=0)
    eight.freeze()
    granted(eight.acquire(token("1"), "ann", team="a", memory_mb=8000, ttl_ms=0))
    eight.live_on(100_000)
    wait(eight, "bob", team="a", memory_mb=4000)
    eight.release(token("1"))
    assert states(eight, "bob") == {"bob": "offered"}
    eight.live_on(5000)
    assert wait(eight, "bob", team="a", memory_mb=4000)[0] == "GRANTED"
    eight.release(token("bob"))
    assert use_of(eight, "a") == pytest.approx(8000 * 100 + 4000 * 5)


def test_default_team_goes_the_straight_way_too(eight: Pool) -> None:
    """Policies of teams cost a lease of a library at most one command."""
    calls = []
    for lines in ({}, {"a": "nominal_mb=4000"}):
        eight.set_teams(**lines)
        granted(eight.acquire(token(f"x{len(calls)}"), "ann", memory_mb=100))
        stats: Any = eight.redis.info("commandstats")
        granted(eight.acquire(token(f"y{len(calls)}"), "ann", memory_mb=100))
        after: Any = eight.redis.info("commandstats")
        calls.append(sum(after[name]["calls"] - stats[name]["calls"] for name in stats))
        eight.release(token(f"x{len(calls) - 1}"))
        eight.release(token(f"y{len(calls) - 1}"))
    assert calls[1] <= calls[0] + 1


def test_policy_of_pool_and_teams_is_one_version(eight: Pool) -> None:
    """Written against the version that was read, or nothing of it is."""
    version = said(eight.set_teams(a="weight=2"))[1]

    def both(against: int, *more: Any) -> list[Any]:
        return said(
            eight.run("set_policy", 1, "ann", "idle_after_s", 700, "version", against, *more)
        )

    late = both(version - 1, "teams", 1, "b", "weight=3")
    assert late == ["REFUSED", "conflict", str(version)]
    for wrong in (("teams", 2, "b", "weight=3"), ("teams", 1, "b", "colour=3"), ("teams", 1, "b"),
                  ("teams", "x"), ("version", "x"), ("teams", 1, "a b", "weight=1")):  # fmt: skip
        assert both(version, *wrong)[:2] == ["REFUSED", "bad_request"], wrong
    assert eight.hash("teams") == {"a": "weight=2"}
    assert eight.hash("pool")["idle_after_s"] != "700"
    assert both(version, "teams", 1, "b", "weight=3 lend_mb=5") == ["POLICY", version + 1]
    assert eight.hash("teams") == {"b": "weight=3 lend_mb=5"}
    pool = eight.hash("pool")
    assert [pool[x] for x in ("idle_after_s", "teams", "team_lend_limits")] == ["700", "1", "1"]
    events = [row for _, row in eight.redis.xrevrange(eight.keys.events, count=2)]
    assert {row["event"]: row["version"] for row in events} == {
        "policy": str(version + 1), "teams": str(version + 1),
    }  # fmt: skip
    assert said(eight.run("set_policy", 1, "ann", "teams", 0)) == ["POLICY", version + 2]
    assert eight.hash("teams") == {}
    eight.set_policy(safe_mode=1)
    refused = said(eight.run("set_policy", 1, "ann", "safe_mode", 1, "teams", 0))
    assert refused[:2] == ["REFUSED", "safe_mode"]
    assert said(eight.run("set_policy", 1, "ann", "safe_mode", 0, "teams", 0))[0] == "POLICY"
