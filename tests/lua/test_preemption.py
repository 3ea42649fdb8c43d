"""Preemption: what is taken back, for which head, with which notice, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import audit
from tests.lua.costs import commands
from tests.pools import Pool, device, granted, said, token

DAY_MS = 24 * 3600 * 1000

AFTER_MS, RUNTIME_MS, GRACE_MS = 60_000, 300_000, 60_000


def wait(pool: Pool, name: str, **ask: Any) -> list[Any]:
    """Wait, or poll, under a token of that name."""
    return said(pool.acquire(token(name), name, wait_ms=600_000, **ask))


def live(pool: Pool, ms: int, *, polls: dict[str, dict[str, Any]], renews: tuple[str, ...]) -> None:
    """Let time pass: hosts report, holders renew and waiters poll every 5 s."""
    while ms > 0:
        pool.live_on(min(ms, 5000))
        ms -= 5000
        for name in renews:
            pool.renew(token(name))
        for name, ask in polls.items():
            wait(pool, name, **ask)


def noticed(pool: Pool, *names: str) -> dict[str, str]:
    """Leases that are to be preempted, and for which waiter."""
    rows = {name: pool.hash(f"record:{token(name)}") for name in names}
    return {
        name: row["preempt_for"].strip("-") for name, row in rows.items() if "preempt_at_ms" in row
    }


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """Two GPUs of 4,000 MiB; team a has a quota of one, b of the other."""
    pool.report((device("gpu-a", 4000), device("gpu-b", 4000, index=1)), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=4000", b="nominal_mb=4000")
    return pool


def borrow(lab: Pool) -> None:
    """Team b holds both GPUs, with four leases: two of them are borrowed memory."""
    for name in ("b1", "b2", "b3", "b4"):
        granted(lab.acquire(token(name), name, team="b", memory_mb=2000))
        lab.skew(1000)


BS = ("b1", "b2", "b3", "b4")


def reclaimed(lab: Pool) -> tuple[dict[str, Any], dict[str, str]]:
    """Have team a ask for what b borrowed; its request, and what is noticed for it."""
    lab.policy(min_runtime_s=0)
    borrow(lab)
    ask = {"team": "a", "memory_mb": 4000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=BS)
    return ask, noticed(lab, *BS)


def test_own_quota_comes_back_with_notice(lab: Pool) -> None:
    """The youngest of those that are beyond the quota go, after their time, and to no other."""
    borrow(lab)
    ask = {"team": "a", "memory_mb": 4000}
    assert wait(lab, "a1", **ask)[0] == "WAITING"
    live(lab, AFTER_MS - 5000, polls={"a1": ask}, renews=BS)
    assert noticed(lab, *BS) == {}
    live(lab, RUNTIME_MS - AFTER_MS - 10_000, polls={"a1": ask}, renews=BS)
    assert noticed(lab, *BS) == {}, "within min_runtime_s of their grants"
    live(lab, 25_000, polls={"a1": ask}, renews=BS)
    gone = noticed(lab, *BS)
    assert set(gone.values()) == {"a1"}
    assert len(gone) == 2
    devices = {lab.hash(f"record:{token(name)}")["devices"] for name in gone}
    assert len(devices) == 1, "both on one GPU: it asks for a whole one's memory"
    told = said(lab.renew(token(next(iter(gone)))))
    assert told[0] == "RENEWED"
    assert told[3].startswith("preempt:")
    other = {"team": "b", "memory_mb": 2000}
    wait(lab, "b9", **other)
    live(lab, GRACE_MS + 5000, polls={"a1": ask, "b9": other}, renews=BS)
    assert [said(lab.renew(token(name)))[:2] for name in gone] == [["LOST", "preempted"]] * 2
    assert lab.hash(f"record:{token('a1')}")["state"] == "active"
    assert lab.hash(f"record:{token('b9')}")["state"] == "waiting"
    assert lab.events().count("preempting") == 2
    audit(lab.redis, lab.keys)


def test_two_waiters_take_no_team_below_its_quota(lab: Pool) -> None:
    """Count a lease that is noticed for one of them as gone for the other."""
    lab.set_teams(
        a="nominal_mb=1000", b="nominal_mb=4000", c="nominal_mb=2000", d="nominal_mb=1000"
    )
    lab.policy(min_runtime_s=0)
    asks = {f"{name}1": {"team": name, "memory_mb": 1000, "ttl_ms": 0} for name in "ad"}
    for name, memory_mb in (("b1", 4000), ("c1", 2000), ("b2", 2000)):
        granted(lab.acquire(token(name), name, team=name[0], memory_mb=memory_mb))
        lab.skew(1000)
    for name, ask in asks.items():
        wait(lab, name, **ask)
    live(lab, 2 * AFTER_MS - 10_000, polls=asks, renews=("b1", "b2", "c1"))
    assert noticed(lab, "b1", "b2", "c1") == {"b2": "a1"}
    live(lab, GRACE_MS, polls=asks, renews=("b1", "b2", "c1"))
    assert [wait(lab, name, **ask)[0] for name, ask in asks.items()] == ["GRANTED"] * 2
    assert not lab.hash("preempting")


def test_team_within_its_quota_loses_nothing(lab: Pool) -> None:
    """A borrower waits, however long: nothing is taken for what is not its own."""
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000))
    granted(lab.acquire(token("a1"), "a1", team="a", memory_mb=3000))
    ask = {"team": "b", "memory_mb": 2000, "priority": 9}
    wait(lab, "b2", **ask)
    live(lab, 700_000, polls={"b2": ask}, renews=("b1", "a1"))
    assert noticed(lab, "a1") == {}


def test_higher_priority_takes_from_its_own_team(lab: Pool) -> None:
    """Strictly higher, and the lowest goes first."""
    lab.policy(min_runtime_s=0)
    for name, priority in (("b1", 2), ("b2", 1), ("b3", 2), ("b4", 5)):
        granted(lab.acquire(token(name), name, team="b", memory_mb=2000, priority=priority))
    ask = {"team": "b", "memory_mb": 2000, "priority": 2}
    wait(lab, "b9", **ask)
    live(lab, AFTER_MS + 5000, polls={"b9": ask}, renews=BS)
    assert noticed(lab, *BS) == {"b2": "b9"}


def test_preemptible_lease_has_no_protection(lab: Pool) -> None:
    """It goes before all others, also of a team within its quota."""
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000, preemptible=1))
    granted(lab.acquire(token("c1"), "c1", memory_mb=4000, preemptible=0))
    ask = {"team": "a", "memory_mb": 3000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=("b1", "c1"))
    assert noticed(lab, "b1", "c1") == {"b1": "a1"}


@pytest.mark.parametrize("end", ["cancelled", "satisfied", "silent"])
def test_notices_are_withdrawn_when_their_waiter_needs_them_no_more(lab: Pool, end: str) -> None:
    """It leaves, gets the memory another way, or stops polling: what is left goes on."""
    lab.policy(min_runtime_s=0)
    borrow(lab)
    ask = {"team": "a", "memory_mb": 2000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=BS)
    (victim,) = noticed(lab, *BS)
    assert "preempt:" in said(lab.renew(token(victim)))[3]
    if end == "cancelled":
        lab.release(token("a1"))
    elif end == "silent":
        live(lab, 15_000, polls={}, renews=BS)
    else:
        lab.release(token(next(name for name in BS if name != victim)))
        assert wait(lab, "a1", **ask)[0] == "GRANTED"
    assert noticed(lab, *BS) == {}
    assert said(lab.renew(token(victim)))[3] == ""
    counted = lab.stats()
    assert (counted["noticed"], counted["notices_withdrawn"]) == (1, 1)
    assert lab.events().count("preemption_withdrawn") == 1
    audit(lab.redis, lab.keys)


def test_job_that_was_preempted_is_protected_for_longer(lab: Pool) -> None:
    """Twice as long for the lease that goes on with it; a client cannot invent that."""
    lab.policy(min_runtime_s=100)
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000))
    granted(lab.acquire(token("b2"), "b2", team="b", memory_mb=4000))
    ask = {"team": "a", "memory_mb": 4000}
    wait(lab, "a1", **ask)
    live(lab, 105_000, polls={"a1": ask}, renews=("b1", "b2"))
    (victim,) = noticed(lab, "b1", "b2")
    live(lab, GRACE_MS + 5000, polls={"a1": ask}, renews=("b1", "b2"))
    assert wait(lab, "a1", **ask)[0] == "GRANTED"
    lab.release(token("a1"))
    again = {"team": "b", "memory_mb": 4000, "after": token(victim)}
    granted(lab.acquire(token("b3"), "b3", **again))
    assert lab.hash(f"record:{token('b3')}")["evictions"] == "1"
    lab.release(token("b1" if victim == "b2" else "b2"))
    granted(lab.acquire(token("b4"), "b4", team="b", memory_mb=4000, after=token("nothing")))
    assert "evictions" not in lab.hash(f"record:{token('b4')}")
    wait(lab, "a2", **ask)
    live(lab, 105_000, polls={"a2": ask}, renews=("b3", "b4"))
    assert noticed(lab, "b3", "b4") == {"b4": "a2"}


@pytest.mark.parametrize("young", ["b2", "b3"])
def test_youngest_goes_also_from_among_several_devices(lab: Pool, young: str) -> None:
    """The younger of two that would do as well goes, whichever device it is on."""
    lab.policy(min_runtime_s=0)
    for name in ("b1", "b2"):
        granted(lab.acquire(token(name), name, team="b", memory_mb=3000))
        lab.skew(1000)
    if young == "b3":  # the first device has the younger one
        lab.release(token("b1"))
        granted(lab.acquire(token("b3"), "b3", team="b", memory_mb=3000))
    old = "b1" if young == "b2" else "b2"
    ask = {"team": "a", "memory_mb": 3000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=(old, young))
    assert noticed(lab, old, young) == {young: "a1"}


def test_job_that_gives_its_lease_back_early_counts_as_preempted(lab: Pool) -> None:
    """Obeying a notice costs no protection; giving a lease back without one gives none."""
    lab.policy(min_runtime_s=0)
    borrow(lab)
    ask = {"team": "a", "memory_mb": 2000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=BS)
    (victim,) = noticed(lab, *BS)
    other = next(name for name in BS if name != victim)
    for name in (victim, other):
        lab.release(token(name))
    granted(lab.acquire(token("b8"), "b8", team="b", memory_mb=1000, after=token(victim)))
    granted(lab.acquire(token("b9"), "b9", team="b", memory_mb=1000, after=token(other)))
    assert lab.hash(f"record:{token('b8')}")["evictions"] == "1"
    assert "evictions" not in lab.hash(f"record:{token('b9')}")
    audit(lab.redis, lab.keys)


def test_whole_devices_are_cleared_together_or_not_at_all(pool: Pool) -> None:
    """A gang of two gets both devices of one host, and none is noticed for half of it."""
    for host in ("h1", "h2"):
        gpus = tuple(device(f"{host}-{n}", 1000, index=n) for n in range(2))
        pool.report(gpus, host=host, deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=2000", b="nominal_mb=2000")
    pool.policy(min_runtime_s=0)
    for name, host in (("b1", "h1"), ("b2", "h1"), ("b3", "h2")):
        granted(pool.acquire(token(name), name, team="b", memory_mb=1000, host=host))
    granted(pool.acquire(token("d1"), "d1", memory_mb=1000, host="h2", preemptible=0))
    ask = {"team": "a", "memory_mb": 1000, "devices": 2}
    wait(pool, "a1", **ask)
    live(pool, AFTER_MS + 5000, polls={"a1": ask}, renews=("b1", "b2", "b3", "d1"))
    gone = noticed(pool, "b1", "b2", "b3", "d1")
    assert len(gone) == 2
    hosts = {pool.hash(f"record:{token(name)}")["devices"][:2] for name in gone}
    assert len(hosts) == 1


def test_holder_that_never_asks_ends_a_minute_after_its_time(lab: Pool) -> None:
    """However long it was told that it has."""
    lab.policy(min_runtime_s=0)
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000, ttl_ms=0))
    granted(lab.acquire(token("b2"), "b2", team="b", memory_mb=4000, ttl_ms=0))
    ask = {"team": "a", "memory_mb": 4000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=())
    (victim,) = noticed(lab, "b1", "b2")
    live(lab, GRACE_MS, polls={"a1": ask}, renews=())
    assert lab.hash(f"record:{token(victim)}")["state"] == "active"
    live(lab, 65_000, polls={"a1": ask}, renews=())
    assert said(lab.renew(token(victim))) == ["LOST", "preempted"]
    assert wait(lab, "a1", **ask)[0] == "GRANTED"


def test_memory_of_a_preempted_lease_is_withheld_until_it_is_free(pool: Pool) -> None:
    """On a real device, as after a revoke."""
    pool.report((device("gpu-a", 4000, simulated=0),), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=4000")
    pool.policy(min_runtime_s=0, expiry_grace_s=30)
    granted(pool.acquire(token("b1"), "b1", memory_mb=4000))
    ask = {"team": "a", "memory_mb": 4000}
    wait(pool, "a1", **ask)
    live(pool, AFTER_MS + 5000 + GRACE_MS, polls={"a1": ask}, renews=("b1",))
    live(pool, 10_000, polls={"a1": ask}, renews=("b1",))
    assert pool.number("gpu-a", "withheld_mb") == 4000
    assert pool.hash(f"record:{token('a1')}")["state"] == "waiting"
    live(pool, 35_000, polls={"a1": ask}, renews=())
    assert pool.hash(f"record:{token('a1')}")["state"] == "active"


def test_waiter_asks_a_holder_that_yields(lab: Pool) -> None:
    """The holder is told at its next renewal; one that did not say so is not asked."""
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000, yields=1))
    granted(lab.acquire(token("b2"), "b2", team="b", memory_mb=4000))
    assert said(lab.ask(token("b1"), token("a1"))) == ["UNKNOWN"]
    wait(lab, "a1", team="a", memory_mb=3000)
    assert said(lab.ask(token("b2"), token("a1"))) == ["DECLINED"]
    assert said(lab.ask(token("b1"), token("a1"))) == ["ASKED"]
    assert said(lab.renew(token("b1")))[3] == "wanted:3000:a1"
    assert said(lab.renew(token("b2")))[3] == ""


def test_gang_is_reclaimed_as_the_one_lease_that_it_is(lab: Pool) -> None:
    """A lease of both GPUs counts once against what its team has too much."""
    lab.policy(min_runtime_s=0)
    lab.set_teams(a="nominal_mb=8000", b="nominal_mb=0")
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000, devices=2))
    ask = {"team": "a", "memory_mb": 4000, "devices": 2}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=("b1",))
    assert noticed(lab, "b1") == {"b1": "a1"}


def test_lease_across_the_line_is_the_one_that_suffices(pool: Pool) -> None:
    """A younger one that is too small does not take its place."""
    pool.report((device("gpu-a", 4000),), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=2500", b="nominal_mb=3000")
    pool.policy(min_runtime_s=0)
    granted(pool.acquire(token("b1"), "b1", team="b", memory_mb=2500))
    pool.skew(1000)
    granted(pool.acquire(token("b2"), "b2", team="b", memory_mb=1500))
    ask = {"team": "a", "memory_mb": 2500}
    wait(pool, "a1", **ask)
    live(pool, AFTER_MS + 5000, polls={"a1": ask}, renews=("b1", "b2"))
    assert noticed(pool, "b1", "b2") == {"b1": "a1"}


def test_nothing_ends_for_one_that_a_cap_keeps_from_it(lab: Pool) -> None:
    """Its agent has what it may: memory of another team would lie idle."""
    lab.policy(min_runtime_s=0, max_leases_per_agent=1)
    granted(lab.acquire(token("b1"), "b1", team="b", memory_mb=4000))
    granted(lab.acquire(token("b2"), "b2", team="b", memory_mb=3900))
    granted(lab.acquire(token("x"), "a1", team="a", memory_mb=100, ttl_ms=0))
    ask = {"team": "a", "memory_mb": 3900}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=("b1", "b2"))
    assert noticed(lab, "b1", "b2") == {}


def test_lease_has_its_time_again_when_its_notice_is_withdrawn(lab: Pool) -> None:
    """Also where its holder never renews: it was told of no end."""
    lab.policy(min_runtime_s=0)
    for name in ("b1", "b2"):
        granted(lab.acquire(token(name), name, team="b", memory_mb=4000, ttl_ms=0))
    ask = {"team": "a", "memory_mb": 4000}
    wait(lab, "a1", **ask)
    ends = {name: lab.hash(f"record:{token(name)}")["expires_at_ms"] for name in ("b1", "b2")}
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=())
    assert len(noticed(lab, "b1", "b2")) == 1
    lab.release(token("a1"))
    now = {name: lab.hash(f"record:{token(name)}")["expires_at_ms"] for name in ("b1", "b2")}
    assert now == ends
    audit(lab.redis, lab.keys)


@pytest.mark.parametrize("how", ["revoke", "extend"])
def test_withdrawn_notice_gives_no_time_back_that_an_operator_took(lab: Pool, how: str) -> None:
    """It was revoked, or its time limit set, while it was noticed: that stands."""
    lab.policy(min_runtime_s=0)
    for name in ("b1", "b2"):
        granted(lab.acquire(token(name), name, team="b", memory_mb=4000, ttl_ms=0))
    ask = {"team": "a", "memory_mb": 4000}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=())
    (victim,) = noticed(lab, "b1", "b2")
    if how == "revoke":
        answer = said(lab.revoke(token(victim)))
    else:
        answer = said(lab.extend(token(victim), 600_000))
    lab.release(token("a1"))
    assert noticed(lab, "b1", "b2") == {}
    assert int(lab.hash(f"record:{token(victim)}")["expires_at_ms"]) <= answer[1]
    lab.live_on(70_000 if how == "revoke" else 610_000)
    lab.reap_all()
    ended = {"revoke": "revoked", "extend": "expired"}[how]
    assert said(lab.renew(token(victim))) == ["LOST", ended]


def test_lease_that_ends_before_its_notice_leaves_no_entry_behind(lab: Pool) -> None:
    """Its holder died; its waiter gets what it had, and nothing more is noticed."""
    ask, gone = reclaimed(lab)
    rest = tuple(name for name in BS if name not in gone)
    live(lab, 40_000, polls={"a1": ask}, renews=rest)
    assert lab.hash(f"record:{token('a1')}")["state"] == "active"
    assert not lab.hash("preempting")


def calls_of_a_release(pool: Pool, hosts: int) -> int:
    """Commands of a release beside a head for each host for which a lease there ends."""
    for n in range(hosts):
        pool.report((device(f"gpu-{n}", 1000),), host=f"h{n}", deadline_ms=DAY_MS)
    pool.report((device("gpu-far", 1000, model="far"),), host="far", deadline_ms=DAY_MS)
    pool.set_teams(a=f"nominal_mb={1000 * hosts}", b="nominal_mb=0")
    pool.set_policy(min_runtime_s=0, reclaim_after_s=1)
    granted(pool.acquire(token("gone"), "gone", memory_mb=1000, model="far"))
    asks = {n: {"team": "a", "memory_mb": 900, "host": f"h{n}"} for n in range(hosts)}
    for n, ask in asks.items():
        granted(pool.acquire(token(f"b{n}"), "b", team="b", memory_mb=1000, host=ask["host"]))
        wait(pool, f"a{n}", **ask)
    pool.skew(1000)
    for n, ask in asks.items():
        wait(pool, f"a{n}", **ask)
    assert len(pool.hash("preempting")) == 2 * hosts
    reply, calls = commands(pool.redis, lambda: pool.release(token("gone")))
    assert reply[0] == "RELEASED"
    audit(pool.redis, pool.keys)
    return calls


def test_release_costs_the_same_beside_more_heads_for_which_leases_end(pool: Pool) -> None:
    """S8: of those that a cap may have held back, a call looks at some."""
    more = Pool(pool.redis, shebang=pool.shebang, functions=pool.functions)
    assert calls_of_a_release(pool, 24) >= calls_of_a_release(more, 72)


def test_preemptible_lease_does_not_end_for_a_borrower(lab: Pool) -> None:
    """Whole devices count as they are, not by the least that was asked of them."""
    lab.set_teams(a="nominal_mb=500", b="nominal_mb=8000")
    for name in ("b1", "b2"):
        granted(lab.acquire(token(name), name, team="b", memory_mb=4000, preemptible=1))
    ask = {"team": "a", "memory_mb": 500, "exclusive": 1}
    wait(lab, "a1", **ask)
    live(lab, AFTER_MS + 5000, polls={"a1": ask}, renews=("b1", "b2"))
    assert noticed(lab, "b1", "b2") == {}


def test_heads_of_one_team_count_together_against_its_quota(lab: Pool) -> None:
    """Memory that comes for one of them is its team's already: the other would borrow."""
    lab.policy(min_runtime_s=0)
    borrow(lab)
    asks = {"a1": {"team": "a", "memory_mb": 2000}, "a2": {"team": "a", "memory_mb": 3000}}
    for name, ask in asks.items():
        wait(lab, name, **ask)
    live(lab, AFTER_MS + 10_000, polls=asks, renews=BS)
    gone = noticed(lab, *BS)
    assert len(set(gone.values())) == 1
    live(lab, GRACE_MS + 5000, polls=asks, renews=BS)
    states = {name: lab.hash(f"record:{token(name)}")["state"] for name in asks}
    assert sorted(states.values()) == ["active", "waiting"]
    assert set(noticed(lab, *BS)) - gone.keys() == set()
    audit(lab.redis, lab.keys)


def test_set_of_notices_outlives_its_first_end(lab: Pool) -> None:
    """The team's cap holds the head back until all have ended: it waits for the rest."""
    lab.set_teams(b="nominal_mb=4000 borrow_mb=0")
    lab.policy(min_runtime_s=0)
    for name in ("b1", "b2"):
        granted(lab.acquire(token(name), name, team="b", memory_mb=2000, placement="pack"))
    ask = {"team": "b", "memory_mb": 4000, "priority": 1}
    wait(lab, "b9", **ask)
    live(lab, AFTER_MS + 5000, polls={"b9": ask}, renews=("b1", "b2"))
    assert noticed(lab, "b1", "b2") == {"b1": "b9", "b2": "b9"}
    lab.release(token("b1"))
    wait(lab, "b9", **ask)
    assert noticed(lab, "b2") == {"b2": "b9"}
    live(lab, GRACE_MS + 5000, polls={"b9": ask}, renews=("b2",))
    assert lab.hash(f"record:{token('b9')}")["state"] == "active"
    audit(lab.redis, lab.keys)


CHANGES: dict[str, dict[str, str] | int] = {
    "the asker's team has no quota any more": {"a": "nominal_mb=0", "b": "nominal_mb=4000"},
    "the victims' team has all of it": {"a": "nominal_mb=0", "b": "nominal_mb=8000"},
    "no team has a policy any more": {},
    "nothing is taken back any more": 0,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_notice_stands_under_the_quotas_that_it_was_given_under(
    lab: Pool, change: dict[str, str] | int
) -> None:
    """A change takes it back; by the new rules nothing ends here, and the leases go on."""
    ask, gone = reclaimed(lab)
    assert len(gone) == 2
    if isinstance(change, int):
        lab.set_policy(reclaim_after_s=change)
    else:
        lab.set_teams(**change)
    assert noticed(lab, *BS) == {}
    assert not lab.hash("preempting")
    assert lab.events().count("preemption_withdrawn") == 2
    audit(lab.redis, lab.keys)
    live(lab, AFTER_MS + 2 * GRACE_MS, polls={"a1": ask}, renews=BS)
    assert [said(lab.renew(token(name)))[0] for name in BS] == ["RENEWED"] * 4
    assert lab.hash(f"record:{token('a1')}")["state"] == "waiting"


def test_right_that_the_new_quotas_leave_is_asked_for_anew(lab: Pool) -> None:
    """At the next poll, with all of the time of a notice."""
    ask, before = reclaimed(lab)
    live(lab, GRACE_MS - 10_000, polls={"a1": ask}, renews=BS)
    lab.set_teams(a="nominal_mb=4000 weight=3", b="nominal_mb=3000")
    live(lab, 5000, polls={"a1": ask}, renews=BS)
    assert noticed(lab, *BS) == before
    live(lab, GRACE_MS - 10_000, polls={"a1": ask}, renews=BS)
    assert lab.events().count("preempted") == 0
    live(lab, 15_000, polls={"a1": ask}, renews=BS)
    assert lab.hash(f"record:{token('a1')}")["state"] == "active"
    assert lab.events().count("preempted") == 2


@pytest.mark.parametrize("how", ["operator", "holder", "ttl"])
def test_notice_outlives_a_longer_time(lab: Pool, how: str) -> None:
    """An extension, or a renewal for a week, moves no end that was noticed."""
    ask, gone = reclaimed(lab)
    for name in gone:
        if how == "ttl":
            lab.renew(token(name), ttl_ms=7 * DAY_MS)
        else:
            lab.run("extend", 1, token(name), DAY_MS, "op" if how == "operator" else "")
    assert noticed(lab, *BS) == gone
    live(lab, GRACE_MS + 5000, polls={"a1": ask}, renews=BS)
    assert [said(lab.renew(token(name)))[:2] for name in gone] == [["LOST", "preempted"]] * 2
    assert lab.hash(f"record:{token('a1')}")["state"] == "active"


def test_notices_are_withdrawn_where_their_device_takes_no_lease(lab: Pool) -> None:
    """It is drained meanwhile: what would end on it ends for nothing, and other leases do."""
    ask, first = reclaimed(lab)
    drained = lab.hash(f"record:{token(min(first))}")["devices"].partition("=")[0]
    lab.drain(drained)
    assert noticed(lab, *BS) == {}
    live(lab, 10_000, polls={"a1": ask}, renews=BS)
    then = noticed(lab, *BS)
    assert len(then) == 2
    assert not then.keys() & first.keys()
    live(lab, GRACE_MS + 5000, polls={"a1": ask}, renews=BS)
    assert [said(lab.renew(token(name)))[0] for name in first] == ["RENEWED"] * 2
    assert lab.hash(f"record:{token('a1')}")["state"] == "active"


def test_head_for_which_leases_end_is_looked_at_when_its_cap_leaves_more(pool: Pool) -> None:
    """No cap takes it out of its queue, and what it could not have may be free by then."""
    small = device("gpu-c", 1000, index=2, model="small")
    gpus = (device("gpu-a", 3000), device("gpu-b", 4000, index=1), small)
    pool.report(gpus, deadline_ms=DAY_MS)
    pool.set_policy(max_memory_per_agent_mb=4500, min_runtime_s=0, reclaim_after_s=5)
    pool.set_teams(a="nominal_mb=8000", b="weight=1", c="nominal_mb=4000")
    for name, team, mb in (("c", "c", 4000), ("b", "b", 3000), ("x", "a", 1000)):
        agent = "ann" if team == "a" else name
        held = granted(pool.acquire(token(name), agent, team=team, memory_mb=mb, ttl_ms=0))
        assert held.devices[0][1] == mb
    ask = {"wait_ms": 600_000, "team": "a", "memory_mb": 2000, "exclusive": 1}
    for _ in range(3):
        pool.acquire(token("w"), "ann", **ask)
        pool.live_on(4000)
    assert noticed(pool, "b", "c", "x") == {"b": "w"}
    pool.release(token("c"))
    assert pool.hash(f"record:{token('w')}")["state"] == "waiting", "4,000 MiB of 3,500"
    pool.release(token("x"))
    assert pool.hash(f"record:{token('w')}")["devices"] == "gpu-b=4000"
    assert noticed(pool, "b") == {}
    audit(pool.redis, pool.keys)
