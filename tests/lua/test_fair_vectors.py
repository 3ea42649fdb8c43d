"""Numbers that fair share and preemption must come to, beside those of Slurm and Kueue.

The tables of our own rules are worked out from the formulas F1 to F5 of
`docs/concepts/fair-share.md`. Slurm's are from a run of 22.05.8 with a half-life of 120 s and a
period of 60 s. Kueue's are outcomes of `pkg/scheduler/preemption` at v0.20.0-devel-377, restated
for a flat cohort with one resource.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.audit import audit
from tests.pools import Pool, device, granted, said, token

DAY_MS = 24 * 3600 * 1000


def now_ms(pool: Pool) -> int:
    """The pool's time as it stands."""
    moment: int = pool.reap()[1]
    return moment


def set_use(pool: Pool, team: str, use: float, at_ms: int) -> None:
    """Put down what a team has used, and when that was."""
    pool.redis.hset(f"{pool.keys.base}:agents", f"team {team}#use", f"{use!r}@{at_ms}")
    pool.by_hand()


def use_of(pool: Pool, team: str) -> float:
    return float(pool.hash("agents")[f"team {team}#use"].partition("@")[0])


def touch(pool: Pool, team: str) -> float:
    """Let what the team holds change twice within a moment; its use as of now."""
    granted(pool.acquire(token("touch"), "touch", team=team, memory_mb=1))
    pool.release(token("touch"))
    pool.forget_end(token("touch"))
    return use_of(pool, team)


@pytest.fixture
def box(pool: Pool) -> Pool:
    """One GPU of 8,000 MiB; teams a and b of weight 1."""
    pool.report((device("gpu-a", 8000),), deadline_ms=DAY_MS)
    pool.set_teams(a="weight=1", b="weight=1")
    return pool


USES = [  # use before, MiB held, seconds, half-life, use after
    (0, 8, 600, 600, 3462.468098),
    (1000, 0, 600, 600, 500.0),
    (1000, 0, 0, 600, 1000.0),
    (1000, 4, 300, 600, 1721.240207),
    (0, 8, 2_592_000, 86_400, 997_190.811334),
    (1000, 1, -5, 600, 1000.0),  # time never goes back
    (1000, 8, 600, 0, 5800.0),  # half-life 0: nothing is forgotten
]


@pytest.mark.parametrize(("before", "held_mb", "seconds", "half_life_s", "after"), USES)
def test_use_is_that_of_the_table(
    box: Pool, before: float, held_mb: int, seconds: int, half_life_s: int, after: float
) -> None:
    """F1, to nine digits, over seconds and over a month."""
    box.policy(half_life_s=half_life_s)
    if held_mb:
        granted(box.acquire(token("held"), "held", team="a", memory_mb=held_mb, ttl_ms=0))
    set_use(box, "a", before, now_ms(box) - seconds * 1000)
    assert touch(box, "a") == pytest.approx(after, rel=1e-9)
    set_use(box, "a", after, now_ms(box))  # the audit takes no time of the future


def test_use_of_a_steady_holder_comes_to_a_fixed_point(box: Pool) -> None:
    """MiB times half-life by ln 2: from there it stays, however often it is brought up to date."""
    box.policy(half_life_s=600)
    granted(box.acquire(token("held"), "held", team="a", memory_mb=8, ttl_ms=0))
    set_use(box, "a", 6924.936196267025, now_ms(box))
    for _ in range(5):
        box.live_on(70_000)
        assert touch(box, "a") == pytest.approx(8 * 600 / math.log(2), rel=1e-12)


def test_use_over_six_periods_is_that_over_one(box: Pool) -> None:
    """There is no period: brought up to date six times, or once."""
    box.policy(half_life_s=600)
    for team in ("a", "b"):
        granted(box.acquire(token(team), team, team=team, memory_mb=8, ttl_ms=0))
    for _ in range(6):
        box.live_on(100_000)
        touch(box, "a")
    assert use_of(box, "a") == pytest.approx(touch(box, "b"), rel=1e-12)
    assert use_of(box, "a") == pytest.approx(3462.468098, rel=1e-9)


ORDERS = [  # use of a and of b, which asked first, nominal quota of b, which is first
    (10, 20, "ba", 0, "a"),
    (10, 10, "ba", 0, "b"),
    (10, 10, "ab", 0, "a"),
    (0, 99, "ab", 8000, "b"),
]


@pytest.mark.parametrize(("of_a", "of_b", "asked", "nominal_mb", "first"), ORDERS)
def test_heads_go_in_the_order_of_the_table(
    box: Pool, of_a: float, of_b: float, asked: str, nominal_mb: int, first: str
) -> None:
    """F4: within the nominal quota first, then the smaller share, then the rank."""
    box.policy(half_life_s=0)
    box.set_teams(a="weight=1", b=f"weight=1 nominal_mb={nominal_mb}")
    granted(box.acquire(token("full"), "full", memory_mb=8000))
    for team in asked:
        box.acquire(token(team), team, team=team, memory_mb=8000, wait_ms=60_000)
        box.skew(1000)
    for team, use in (("a", of_a), ("b", of_b)):
        set_use(box, team, use, now_ms(box))
    box.release(token("full"))
    offered = [t for t in "ab" if box.hash(f"record:{token(t)}")["state"] == "offered"]
    assert offered == [first]


FLOORS = [  # in s of a GPU: share of the team that waits, of one of weight 2 that comes, its use
    (500, 0, 880),
    (500, 600, 1200),
    (30, 0, 0),
]


@pytest.mark.parametrize(("waits", "before", "after"), FLOORS)
def test_team_that_begins_to_wait_is_behind_by_a_credit_at_most(
    box: Pool, waits: float, before: float, after: float
) -> None:
    """F3: 60 s of the largest GPU; what it has used itself beyond that stays counted."""
    box.policy(half_life_s=0)
    box.set_teams(a="weight=1", b="weight=2")
    gpu_mb = 8000
    granted(box.acquire(token("full"), "full", memory_mb=gpu_mb))
    box.acquire(token("a"), "a", team="a", memory_mb=gpu_mb, wait_ms=60_000)
    set_use(box, "a", waits * gpu_mb, now_ms(box))
    set_use(box, "b", before * 2 * gpu_mb, now_ms(box))
    box.acquire(token("b"), "b", team="b", memory_mb=gpu_mb, wait_ms=60_000)
    assert use_of(box, "b") == pytest.approx(after * gpu_mb)
    assert use_of(box, "a") == pytest.approx(max(waits, before - 60) * gpu_mb), (
        "as in the other way"
    )


@pytest.mark.parametrize("first", ["a", "default"])
def test_default_team_without_a_policy_begins_to_wait_as_others_do(box: Pool, first: str) -> None:
    """F3: it is one of those that wait, whoever comes first."""
    box.policy(half_life_s=0)
    gpu_mb = 8000
    granted(box.acquire(token("full"), "full", team="b", memory_mb=gpu_mb))
    set_use(box, "default", 1000 * gpu_mb, now_ms(box))
    then = "default" if first == "a" else "a"
    for team in (first, then):
        box.acquire(token(f"w{team}"), team, team=team, memory_mb=gpu_mb, wait_ms=60_000)
    assert use_of(box, "a") == pytest.approx((1000 - 60) * gpu_mb)


def test_use_of_all_teams_begins_with_the_first_policy(box: Pool) -> None:
    """F1: what the default team holds already counts from then on, not from its next change."""
    box.set_teams()
    box.policy(half_life_s=0)
    granted(box.acquire(token("d"), "d", memory_mb=4000, ttl_ms=0))
    granted(box.acquire(token("c"), "c", team="c", memory_mb=1000, ttl_ms=0))
    box.set_teams(a="weight=1")
    box.live_on(5000)
    box.set_teams(a="weight=1", c="weight=1")  # it has a policy from now on
    box.live_on(5000)
    box.release(token("d"))
    box.release(token("c"))
    assert (use_of(box, "default"), use_of(box, "c")) == (4000 * 10, 1000 * 5)


def test_nothing_is_known_of_use_without_policies(box: Pool) -> None:
    """Use under earlier policies is gone with the last of them, however it went on."""
    box.policy(half_life_s=0)
    for team in ("a", "default"):
        granted(box.acquire(token(team), team, team=team, memory_mb=1000, ttl_ms=0))
    box.live_on(5000)
    box.release(token("a"))
    box.set_teams()
    assert not [name for name in box.hash("agents") if name.endswith("#use")]
    box.live_on(600_000)
    box.set_teams(b="weight=1")
    box.set_teams(a="weight=1", b="weight=1")
    box.live_on(5000)
    assert [touch(box, team) for team in ("a", "default")] == [0, 1000 * 5]


def test_half_life_that_changes_counts_from_then_on(box: Pool) -> None:
    """F1: use until then has decayed by the one before, also where nothing was held."""
    box.set_policy(half_life_s=600)
    set_use(box, "a", 1000.0, now_ms(box))
    set_use(box, "default", 3000.0, now_ms(box))
    box.live_on(600_000)
    box.set_policy(half_life_s=0)
    box.live_on(600_000)
    assert [touch(box, team) for team in ("a", "default")] == pytest.approx([500, 1500])


# Slurm. Decay alone applies, within the error of its factor, 1 - 0.693/h for each second. A period
# adds its use decayed as if all were used at the beginning: y/(e^y - 1) of ours, y = dt ln2 / h.
# The tail of a job that ends, to which no decay is applied, has nothing to compare here.
SLURM_HALF_LIFE_S, SLURM_PERIOD_S = 120, 60
SLURM_DECAYS = (403.37, 284.96, 201.31, 142.22, 100.47, 70.98, 50.23)
SLURM_ADDS = [(4, 31, 103.62), (8, 31, 207.24)]  # CPUs, seconds, raw use


def test_use_decays_as_in_slurm(box: Pool) -> None:
    """Six periods without a job: within 0.5 %, which is the error of Slurm's factor."""
    box.policy(half_life_s=SLURM_HALF_LIFE_S)
    start_ms = now_ms(box)
    for n, raw in enumerate(SLURM_DECAYS):
        set_use(box, "a", SLURM_DECAYS[0], start_ms - n * SLURM_PERIOD_S * 1000)
        assert touch(box, "a") == pytest.approx(raw, rel=0.005)


@pytest.mark.parametrize(("held_mb", "seconds", "raw"), SLURM_ADDS)
def test_use_accrues_as_in_slurm_but_for_its_period(
    box: Pool, held_mb: int, seconds: int, raw: float
) -> None:
    """Ours is exact; what Slurm's period takes off is known."""
    box.policy(half_life_s=SLURM_HALF_LIFE_S)
    granted(box.acquire(token("held"), "held", team="a", memory_mb=held_mb, ttl_ms=0))
    set_use(box, "a", 0.0, now_ms(box) - seconds * 1000)
    y = seconds * math.log(2) / SLURM_HALF_LIFE_S
    assert touch(box, "a") * y / (math.exp(y) - 1) == pytest.approx(raw, rel=0.002)


# Kueue: reclaimWithinCohort Any, withinClusterQueue LowerPriority, and no borrowWithinCohort are
# our rules. Sizes are in 1,000 MiB; priorities are shifted to 0 and more, in their order.
#
# Left out: reclaimWithinCohort LowerPriority, LowerOrNewerEqualPriority and borrowWithinCohort (we
# have no such choice); preemption for a borrower by weighted share (here the share orders free
# memory, and takes nothing); leases that are being evicted as first victims (here a lease with a
# notice counts as gone, and is no candidate).
FOUR = {"a": 4, "b": 4}
KUEUE: dict[str, tuple[dict[str, int], list[tuple[str, int, int]], tuple[int, int], set[str]]] = {
    "the youngest of the lowest of the borrower": (
        FOUR, [("b1", 2, 0), ("b2", 2, 0), ("b3", 2, 1), ("b4", 2, 0)], (2, 0), {"b4"}),
    "priority before age": (
        FOUR, [("b1", 2, 0), ("b2", 2, 5), ("b3", 4, 9)], (2, 5), {"b1"}),
    "also from a higher priority": (FOUR, [("b1", 8, 9)], (4, 0), {"b1"}),
    "a borrower is cut off at its quota": (
        {"a": 4, "b": 4, "c": 2}, [("c1", 2, 0), ("c2", 2, 0), ("b1", 3, 0), ("b2", 3, 0)],
        (4, 0), {"b2", "c2"}),
    "nothing for one that would borrow": (
        FOUR, [("b1", 3, 0), ("a1", 2, 0), ("b2", 3, 0)], (4, 0), set()),
    "one that straddles the quota may go": (FOUR, [("b1", 3, 0), ("b2", 3, 0)], (4, 0), {"b2"}),
    "fill-back: the small one stays": (
        FOUR, [("b1", 4, 0), ("b2", 3, 0), ("b3", 1, 0)], (3, 0), {"b2"}),
    "fill-back never puts back the last": (
        FOUR, [("b1", 6, 0), ("b2", 1, 0), ("b3", 1, 0)], (4, 0), {"b1"}),
    "in its own team lower ones alone": (
        FOUR, [("a1", 2, 0), ("b1", 4, 0), ("a2", 2, 1)], (2, 1), {"a1"}),
    "never at equal priority": (FOUR, [("b1", 4, 0), ("a1", 4, 1)], (2, 1), set()),
    "a borrower with a higher priority takes nothing of others": (
        FOUR, [("a1", 4, 5), ("b1", 4, 0)], (1, 5), set()),
    "nothing where all are within their quotas": (
        FOUR, [("a1", 3, 0), ("b1", 4, 0)], (2, 0), set()),
    "from the one team that borrows": (
        {"a": 2, "b": 2, "c": 2},
        [("a1", 1, 0), ("b1", 1, 0), ("c1", 1, 0), ("b2", 1, 0), ("c2", 1, 0), ("b3", 1, 0)],
        (1, 0), {"b3"}),
    "a team of weight 0 takes nothing": (
        {"a": 3, "b": 3, "z": 0}, [("a1", 3, 0), ("b1", 3, 0)], (-1, 9), set()),
    # Differs: Kueue takes b1, for it looks at other queues first. Here the lowest goes first
    "the lowest of all, also of its own team": (
        FOUR, [("b1", 6, 8), ("a1", 2, 0)], (2, 8), {"a1"}),
}  # fmt: skip


@pytest.mark.parametrize("case", KUEUE)
def test_victims_are_those_of_kueue(pool: Pool, case: str) -> None:
    """They are of teams over their quota, lowest priority first, filled back, all or nothing."""
    quotas, running, (size, priority), victims = KUEUE[case]
    total_mb = sum(quotas.values()) * 1000
    pool.report((device("gpu-a", total_mb),), deadline_ms=DAY_MS)
    pool.policy(max_memory_per_agent_mb=total_mb, min_runtime_s=0, reclaim_after_s=30)
    pool.set_teams(
        **{name: f"nominal_mb={n * 1000}" + " weight=0" * (not n) for name, n in quotas.items()}
    )
    for name, each, at in running:
        ask: dict[str, Any] = {"team": name[0], "memory_mb": each * 1000, "priority": at}
        granted(pool.acquire(token(name), name, ttl_ms=0, **ask))
        pool.skew(1000)
    team = "z" if size < 0 else "a"
    for _ in range(8):
        reply = pool.acquire(
            token("w"), "w", team=team, memory_mb=abs(size) * 1000, priority=priority,
            wait_ms=600_000,
        )  # fmt: skip
        assert said(reply)[0] == "WAITING"
        pool.live_on(5000)
    gone = {name for name, *_ in running if "preempt_at_ms" in pool.hash(f"record:{token(name)}")}
    assert gone == victims
    audit(pool.redis, pool.keys)
