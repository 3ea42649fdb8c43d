"""Explanations in a pool whose teams have policies: they say what the scripts do, and why."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.protocol.messages import Answer
from agent_sdk.protocol.replies import refusal_for_host
from agent_sdk.request import Caller
from agent_sdk.state import pool_state, queue
from agent_sdk.state.explain import Explanation, explain, explain_request
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from agent_sdk.protocol.messages import Request
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import LeaseStatus

DAY_MS = 86_400_000


@pytest.fixture
def pool(pool: Pool) -> Pool:
    """One GPU of 8,100 MiB, in a pool whose time only the test moves."""
    pool.freeze()
    pool.report((device("gpu-a", 8100),), deadline_ms=DAY_MS)
    return pool


def wait(pool: Pool, name: str, **ask: Any) -> list[Any]:
    """Wait, or poll, under a token of that name."""
    return said(pool.acquire(token(name), name, **{"wait_ms": 60_000} | ask))


def asked(pool: Pool, **ask: Any) -> tuple[Explanation, Request]:
    """Explain a request that is not made."""
    request = Caller("h1").request("me", **{"memory_mb": 900, "host": "any"} | ask)
    found: Explanation = pool.look(explain_request(pool.keys, request))
    return found, request


def told(pool: Pool, name: str) -> Explanation:
    """Explain a waiter, or a lease."""
    found: Explanation = pool.look(explain(pool.keys, token(name)))
    return found


def standing(pool: Pool, name: str) -> pool_state.QueueStanding:
    """The standing of a waiter in the queue's list."""
    scene: pool_state.PoolState = pool.look(pool_state.read(pool.keys))
    return pool_state.standings(scene)[token(name)]


def seen(pool: Pool, name: str) -> Any:
    """A lease or a waiter, as readers get it."""
    found: LeaseStatus | WaiterStatus = pool.look(queue.lookup(pool.keys, token(name)))
    return found


LIMITS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "max_priority=3": ("max_priority=3", {"priority": 4}, {"priority": 3}),
    "max_ttl_s=20": ("max_ttl_s=20", {}, {"ttl_s": 20}),
    "max_ttl_s=25": ("max_ttl_s=25", {"ttl_s": 0}, {"ttl_s": 25}),
    "max_hold_s=60": ("max_hold_s=60", {"max_hold_s": 61}, {"max_hold_s": 60}),
    "most_mb=800": ("nominal_mb=500 borrow_mb=300", {"memory_mb": 801}, {"memory_mb": 800}),
}
"""Detail of a refusal -> the team's policy, what is asked, and the nearest request that fits."""


@pytest.mark.parametrize("detail", LIMITS)
def test_request_over_a_limit_of_its_team_is_told_which_and_what_would_fit(
    pool: Pool, detail: str
) -> None:
    """In the words of the refusal itself; with the change, acquire grants it."""
    line, ask, change = LIMITS[detail]
    pool.set_teams(lab=line)
    found, request = asked(pool, team="lab", **ask)
    assert found.code == "team_limit"
    refused = pool.run("acquire", *request.call().args)
    assert said(refused) == ["REFUSED", "team_limit", detail]
    assert found.summary == str(refusal_for_host(Answer(refused, 0.0), None, "", "lab"))
    assert [x.change for x in found.fits_now] == [change]
    _, nearer = asked(pool, team="lab", **ask | change)
    assert said(pool.run("acquire", *nearer.call().args))[0] == "GRANTED"


def test_team_without_a_policy_is_told_so(pool: Pool) -> None:
    """The default team is always there; with a policy of none, every team is."""
    assert asked(pool, team="typo")[0].code == "fits"
    pool.set_teams(lab="weight=1")
    found, _ = asked(pool, team="typo")
    assert (found.code, [x.change for x in found.fits_now]) == (
        "team_unknown",
        [{"team": "default"}],
    )
    assert re.search(r"team typo is not in .*gpu-broker policy apply", found.summary)


def test_cap_that_holds_a_request_back_is_named(pool: Pool) -> None:
    """The key's, the team's, the agent's: each by the words of the refusal."""
    pool.policy(max_memory_per_agent_mb=2000)
    pool.set_teams(lab="max_leases=1", ward="nominal_mb=500 borrow_mb=500")
    granted(pool.acquire(token("1"), "ann", owner="bot", memory_mb=1500))
    granted(pool.acquire(token("2"), "bob", team="lab", memory_mb=100))
    granted(pool.acquire(token("3"), "cat", team="ward", memory_mb=600))
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"owner": "bot"}, "agent_cap", "API key bot is at its cap"),
        ({"team": "lab"}, "limit", "team lab has too many leases"),
        ({"team": "ward"}, "agent_cap", "team ward may hold no more now"),
    ]
    for ask, code, words in cases:
        found, request = asked(pool, **ask)
        assert (found.code, found.summary.startswith(words)) == (code, True), found
        refused = pool.run("acquire", *request.call().args)
        assert found.summary == str(refusal_for_host(Answer(refused, 0.0), None, ""))
        assert found.estimate_s is None
        who = words.split()[0].lower().replace("api", "key")
        assert found.basis.startswith(f"it hangs on the {who}'s own leases")
    fits = asked(pool, team="ward")[0].fits_now
    assert [x.change for x in fits] == [{"memory_mb": 400}]


def test_capped_waiter_says_by_which_cap(pool: Pool) -> None:
    """In its state, its standing and its explanation."""
    pool.policy(max_memory_per_agent_mb=2000)
    pool.set_teams(ward="nominal_mb=500 borrow_mb=500")
    granted(pool.acquire(token("1"), "ann", owner="bot", memory_mb=1500))
    granted(pool.acquire(token("3"), "cat", team="ward", memory_mb=600))
    wait(pool, "by-key", owner="bot")
    wait(pool, "by-team", team="ward")
    wait(pool, "ann")
    parties = {name: seen(pool, name).capped_by for name in ("by-key", "by-team", "ann")}
    assert parties == {"by-key": "key bot", "by-team": "team ward", "ann": "agent"}
    words = {"by-key": "API key bot", "by-team": "team ward", "ann": "the agent"}
    for name, begins in words.items():
        assert seen(pool, name).capped
        for says in (standing(pool, name).says, told(pool, name).summary):
            assert says.startswith(begins)


def test_lease_and_waiter_are_read_with_their_team(pool: Pool) -> None:
    """Agents are no teams: the sums of a key or a team count for no agent."""
    granted(pool.acquire(token("on"), "ann", team="lab", owner="bot", memory_mb=8000,
                         preemptible=1, yields=1))  # fmt: skip
    wait(pool, "next", team="lab", owner="bot", preemptible=1, yields=1)
    assert said(pool.ask(token("on"), token("next"))) == ["ASKED"]
    lease, waiter = seen(pool, "on"), seen(pool, "next")
    assert (lease.team, lease.preemptible, lease.yields) == ("lab", True, True)
    assert (lease.wanted, lease.preempt_at_ms) == (("next", 900), None)
    assert (waiter.team, waiter.preemptible, waiter.yields) == ("lab", True, True)
    assert waiter.queue_id == waiter.wish.queue_id == "*/*/m10/lab"
    scene: pool_state.PoolState = pool.look(pool_state.read(pool.keys))
    assert scene.held == {"ann": (8000, 1), "next": (0, 0)}
    assert scene.caps.held("team lab").mb == scene.caps.held("key bot").mb == 8000
    assert told(pool, "on").summary == "it is granted; next asks for it, and waits for 900 MiB"


def test_waiter_behind_the_quota_of_a_team_is_told_so(pool: Pool) -> None:
    """Its own queue is empty before it, and the other team's right comes first; so does a share."""
    pool.set_teams(lab="nominal_mb=8100", ward="weight=1", dorm="weight=5")
    granted(pool.acquire(token("1"), "cat", team="ward", memory_mb=4000))
    granted(pool.acquire(token("2"), "dan", team="dorm", memory_mb=4000))
    pool.skew(60_000)
    pool.renew(token("1"))
    pool.renew(token("2"))
    wait(pool, "w", team="ward", memory_mb=500)
    wait(pool, "d", team="dorm", memory_mb=500)
    wait(pool, "l", team="lab", memory_mb=500)
    assert standing(pool, "w").code == "next"
    assert standing(pool, "w").says.startswith("behind team lab's quota")
    assert standing(pool, "l").says.startswith(pool_state.STANDING["next"])
    pool.release(token("l"))
    assert standing(pool, "w").says.startswith("behind team dorm, which has used less")
    assert told(pool, "w").summary.startswith("behind team dorm, which has used less")
    assert standing(pool, "d").says.startswith(pool_state.STANDING["next"])
    pool.release(token("2"))
    assert {name: seen(pool, name).state for name in "wd"} == {"w": "offered", "d": "offered"}


def test_preemption_is_told_with_its_time(pool: Pool) -> None:
    """Waiter and lease tell what is preempted, for which waiter, in how long."""
    pool.policy(reclaim_after_s=10, min_runtime_s=0, preempt_grace_s=45)
    pool.set_teams(lab="nominal_mb=8000", ward="weight=1")
    granted(pool.acquire(token("on"), "cat", team="ward", memory_mb=8000, ttl_ms=0))
    wait(pool, "l", team="lab", memory_mb=5000)
    for _ in range(3):
        pool.skew(5000)
        wait(pool, "l", team="lab", memory_mb=5000)
    lease, waiter = seen(pool, "on"), seen(pool, "l")
    assert waiter.preempts == (token("on"),)
    assert waiter.preempt_at_ms == lease.preempt_at_ms
    assert (lease.preempt_for, lease.preempt_by, lease.preempt_team) == (token("l"), "l", "lab")
    left = r"preempting 1 lease for it in (\d+) s"
    for says in (standing(pool, "l").says, told(pool, "l").summary):
        found = re.search(left, says)
        assert found, says
        assert 30 <= int(found[1]) <= 60
    found_wait = told(pool, "l")
    assert found_wait.estimate_s is not None
    assert 30 <= found_wait.estimate_s <= 60
    assert re.fullmatch(r"it is granted; preempting in \d+ s, for l of team lab",
                        told(pool, "on").summary)  # fmt: skip


def policies(rng: random.Random) -> dict[str, str]:
    """Policies of some of the teams; of none in one of four cases."""
    fields: dict[str, tuple[int, ...]] = {
        "nominal_mb": (0, 500, 1500, 4000), "borrow_mb": (0, 300, 2000), "lend_mb": (0, 400, 1000),
        "max_leases": (0, 1, 2, 5), "max_priority": (0, 5), "max_ttl_s": (10, 60),
        "max_hold_s": (5, 50),
    }  # fmt: skip
    teams = [] if rng.random() < 0.25 else rng.sample(["a", "b", "default"], rng.randint(1, 3))
    return {
        team: " ".join(
            f"{name}={rng.choice(most)}" for name, most in fields.items() if rng.random() < 0.3
        )
        for team in teams
    }


@pytest.mark.parametrize("seed", range(40))
def test_explanation_says_what_acquire_does(pool: Pool, seed: int) -> None:
    """Over random policies, leases and requests: the same code, and the same sentence of a cap."""
    rng = random.Random(seed)
    pool.policy(
        max_memory_per_agent_mb=rng.choice((1200, 4000, 10**6)),
        max_leases_per_agent=rng.choice((2, 256)),
        allow_fractional_shares=int(rng.random() < 0.8),
    )
    pool.report(tuple(device(f"gpu-{n}", mb) for n, mb in enumerate((1000, 2000, 3000))),
                deadline_ms=DAY_MS)  # fmt: skip
    pool.set_teams(**policies(rng))
    compare(pool, rng, ("",))


@pytest.mark.parametrize("seed", range(40))
def test_explanation_by_model_says_what_acquire_does(pool: Pool, seed: int) -> None:
    """The same where teams have quotas of some models, and requests name one or none."""
    rng = random.Random(seed)
    pool.policy(
        max_memory_per_agent_mb=rng.choice((2500, 10**6)),
        allow_fractional_shares=int(rng.random() < 0.8),
    )
    models = ("L4", "L4", "NVIDIA H100", "L40")
    sizes = enumerate(zip((1000, 2000, 3000, 1500), models, strict=True))
    gpus = (device(f"gpu-{n}", mb, model=model, index=n) for n, (mb, model) in sizes)
    pool.report(tuple(gpus), deadline_ms=DAY_MS)
    lines = {team: rng.sample(BY_MODEL, rng.randint(0, 3)) for team in ("a", "b", "default")}
    pool.set_teams(**{team: " ".join(words) for team, words in lines.items()})
    compare(pool, rng, ("", "", "L4", "NVIDIA H100", "L40"))


BY_MODEL = (
    "nominal_mb@L4=1200", "nominal_mb@L4=300 borrow_mb@L4=700", "borrow_mb@NVIDIA+H100=0",
    "nominal_mb@NVIDIA+H100=2000 borrow_mb@NVIDIA+H100=500", "nominal_mb@A9=5000",
    "nominal_mb=800 borrow_mb=500", "borrow_mb=0", "nominal_mb=2000 lend_mb=100", "max_leases=3",
)  # fmt: skip


def compare(pool: Pool, rng: random.Random, models: tuple[str, ...]) -> None:
    """Ask for this and that, each of one of these models or of any, and compare what is told."""
    for n in range(30):
        ask: dict[str, Any] = {
            "team": rng.choice(("a", "b", "default", "typo")),
            "owner": rng.choice(("", "", "bot")),
            "memory_mb": rng.choice((0, 1, 200, 800, 1500, 2500, 9000)),
            "devices": rng.choice((1, 1, 1, 2)),
            "exclusive": rng.random() < 0.2,
            "priority": rng.choice((0, 0, 0, 6)),
            "ttl_s": rng.choice((30, 30, 0, 5)),
            "max_hold_s": rng.choice((0, 0, 3, 100)),
        }
        ask |= {"model": model} if (model := rng.choice(models)) else {}
        request = Caller("h1").request(rng.choice("xy"), **{"host": "any"} | ask)
        found: Explanation = pool.look(explain_request(pool.keys, request))
        reply = pool.run("acquire", *request.call().args)
        code = "fits" if reply[0] == "GRANTED" else reply[5]
        assert found.code == code, (n, ask, reply, found.summary)
        if code in pool_state.BY_CAPS | {"team_unknown"}:
            refusal = refusal_for_host(Answer(reply, 0.0), None, "", request.team)
            assert found.summary == str(refusal), (n, ask, reply)
        if rng.random() < 0.2:
            pool.skew(rng.choice((100, 4000)))
            pool.reap_all()
