"""Quotas by model of GPU: sums, placement, refusals, the order, and what is taken back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import audit
from tests.lua.costs import commands
from tests.pools import Pool, device, granted, said, token

DAY_MS = 24 * 3600 * 1000

HELD = "team a#model L4"


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """Two L4 of 8,000 MiB and two NVIDIA H100 of 16,000 MiB on one host."""
    pool.report(
        (
            device("l4-0", 8000, model="L4"),
            device("l4-1", 8000, model="L4", index=1),
            device("h100-0", 16_000, model="NVIDIA H100", index=2),
            device("h100-1", 16_000, model="NVIDIA H100", index=3),
        ),
        deadline_ms=DAY_MS,
    )
    return pool


def models_of(pool: Pool, reply: list[Any]) -> list[str]:
    """Models of the devices of a grant."""
    return [pool.hash(f"device:{uuid}")["model"] for uuid in reply[5::8]]


def take(pool: Pool, name: str, team: str = "a", **ask: Any) -> list[Any]:
    """Ask, without waiting, under a token of that name."""
    return said(pool.acquire(token(name), name, team=team, **({"memory_mb": 1000} | ask)))


def wait(pool: Pool, name: str, team: str = "a", **ask: Any) -> list[Any]:
    """Wait, or poll, under a token of that name."""
    return take(pool, name, team, wait_ms=60_000, **ask)


def state(pool: Pool, name: str) -> str:
    return pool.hash(f"record:{token(name)}").get("state", "")


def test_sums_are_those_of_the_models_that_a_policy_names(lab: Pool) -> None:
    """A share and a gang count, until their ends; other models and teams have no such sums."""
    lab.set_teams(a="nominal_mb@L4=9000 nominal_mb@NVIDIA+H100=1000", b="nominal_mb=1000")
    assert lab.hash("pool")["schema"] == "4+models"
    take(lab, "1", model="L4", memory_mb=3000)
    take(lab, "2", devices=2, model="NVIDIA H100", memory_mb=0)
    take(lab, "3", team="b", model="L4")
    row = lab.hash("agents")
    assert {name: row[name] for name in row if "#model" in name} == {
        HELD: "3000", "team a#model NVIDIA H100": "32000",
    }  # fmt: skip
    audit(lab.redis, lab.keys)
    for name in "123":
        lab.release(token(name))
    assert not [name for name in lab.hash("agents") if "#model" in name]


def test_request_for_any_model_gets_one_that_its_team_has_quota_of(lab: Pool) -> None:
    """First where it stays within the nominal quota, then where it borrows, then it waits."""
    lab.set_teams(a="nominal_mb@L4=4000 borrow_mb@L4=1000 borrow_mb@NVIDIA+H100=3000 borrow_mb=0")
    got = [models_of(lab, wait(lab, f"x{n}", memory_mb=2000)) for n in range(3)]
    assert got == [["L4"], ["L4"], ["NVIDIA H100"]]
    assert models_of(lab, wait(lab, "y1", memory_mb=1000)) == ["NVIDIA H100"]
    assert models_of(lab, wait(lab, "y2", memory_mb=1000)) == ["L4"]
    assert wait(lab, "z", memory_mb=1000)[0] == "WAITING"
    assert lab.hash(f"record:{token('z')}")["capped"] == "team a#model *"
    audit(lab.redis, lab.keys)
    lab.release(token("x2"))
    assert state(lab, "z") == "offered"
    assert models_of(lab, wait(lab, "z", memory_mb=1000)) == ["NVIDIA H100"]
    audit(lab.redis, lab.keys)


def test_request_beyond_every_quota_is_refused_at_once_by_its_limit(lab: Pool) -> None:
    """By the model's where it names one, by the most of all registered ones where not."""
    lab.set_teams(a="nominal_mb@L4=4000 borrow_mb@L4=0 nominal_mb@A9=99999 borrow_mb=500")
    for name, ask, detail in (
        ("1", {"model": "L4", "memory_mb": 4001}, "most_mb@L4=4000"),
        ("2", {"model": "NVIDIA H100", "memory_mb": 501}, "most_mb=500"),
        ("3", {"memory_mb": 4001}, "most_mb@*=4000"),
        ("4", {"memory_mb": 600, "exclusive": 1}, "most_mb@*=4000"),
        ("5", {"memory_mb": 100, "devices": 2, "model": "L4"}, "most_mb@L4=4000"),
    ):
        assert wait(lab, name, **ask) == ["REFUSED", "team_limit", detail]
    assert models_of(lab, wait(lab, "6", memory_mb=4000)) == ["L4"]
    audit(lab.redis, lab.keys)


def test_devices_of_a_gang_count_together(lab: Pool) -> None:
    """Two H100 are within a quota of two, and one more share of one is not."""
    lab.set_teams(a="nominal_mb@NVIDIA+H100=32000 borrow_mb@NVIDIA+H100=0")
    assert len(models_of(lab, wait(lab, "1", devices=2, memory_mb=9000))) == 2
    audit(lab.redis, lab.keys)
    asked = {"model": "NVIDIA H100", "memory_mb": 100}
    assert take(lab, "2", **asked)[:2] == ["REFUSED", "agent_cap"]
    assert wait(lab, "2", **asked)[0] == "WAITING"
    assert lab.hash(f"record:{token('2')}")["capped"] == "team a#model NVIDIA H100"
    lab.release(token("1"))
    assert state(lab, "2") == "offered"
    audit(lab.redis, lab.keys)


def test_other_models_follow_the_quota_of_the_pool(lab: Pool) -> None:
    """Memory of a model with a quota is no part of the pool-wide one, nor the reverse."""
    lab.set_teams(a="nominal_mb=2000 borrow_mb=0 nominal_mb@L4=3000 borrow_mb@L4=0")
    asks = {"l": {"model": "L4", "memory_mb": 3000}, "h": {"model": "NVIDIA H100"}}
    assert models_of(lab, take(lab, "l1", **asks["l"])) == ["L4"]
    assert [take(lab, name, **asks["h"])[0] for name in ("h1", "h2")] == ["GRANTED"] * 2
    assert take(lab, "h3", **asks["h"])[1:] == ["agent_cap", "team a"]
    assert take(lab, "l2", model="L4")[1:] == ["agent_cap", "team a#model L4"]
    audit(lab.redis, lab.keys)
    lab.release(token("l1"))
    assert take(lab, "h3", **asks["h"])[1:] == ["agent_cap", "team a"]
    assert take(lab, "l2", model="L4")[0] == "GRANTED"


def test_lend_limit_keeps_the_pool_wide_quota_from_borrowers_by_model(lab: Pool) -> None:
    """The whole of a model's quota is lent; what a team keeps counts in the pool's capacity."""
    lab.set_teams(a="nominal_mb=40000 lend_mb=0", b="nominal_mb@L4=1000")
    assert take(lab, "1", team="b", memory_mb=8000)[0] == "GRANTED"
    assert models_of(lab, take(lab, "2", team="b", memory_mb=1000)) == ["L4"], "its own"
    assert take(lab, "3", team="b", memory_mb=1000)[1:] == ["agent_cap", "team b#model *"]
    audit(lab.redis, lab.keys)


def test_policy_counts_what_is_held_already(lab: Pool) -> None:
    """Leases, offers and reservations of before it; without quotas by model there are no sums."""
    take(lab, "1", memory_mb=8000, model="L4")
    take(lab, "2", team="b", memory_mb=8000, model="L4")
    wait(lab, "3", memory_mb=6000, model="L4")
    lab.release(token("2"))
    assert state(lab, "3") == "offered"
    lab.set_teams(a="nominal_mb@L4=9000", b="nominal_mb@L4=9000")
    assert lab.hash("agents")[HELD] == "14000"
    audit(lab.redis, lab.keys)
    lab.set_teams(a="nominal_mb@NVIDIA+H100=9000")
    assert HELD not in lab.hash("agents")
    audit(lab.redis, lab.keys)
    lab.set_teams(a="nominal_mb=9000")
    assert lab.hash("pool")["schema"] == "4"
    audit(lab.redis, lab.keys)


def test_device_of_another_model_takes_its_sums_along(lab: Pool) -> None:
    """A share of a lease of several devices, too; and back again."""
    lab.set_teams(a="nominal_mb@L4=9000 nominal_mb@L40S=9000")
    take(lab, "1", devices=2, model="L4", memory_mb=0)
    take(lab, "2", team="default", model="NVIDIA H100")
    for model, sums in (("L40S", ["8000", "8000"]), ("L4", ["16000", None])):
        lab.report((device("l4-0", 8000, model=model),), deadline_ms=DAY_MS)
        row = lab.hash("agents")
        assert [row.get(f"team a#model {name}") for name in ("L4", "L40S")] == sums
        audit(lab.redis, lab.keys)
    lab.release(token("1"))
    assert HELD not in lab.hash("agents")


def test_withheld_memory_is_no_part_of_the_sums(lab: Pool) -> None:
    """At the end of its right a lease counts no more, though its memory is not free yet."""
    lab.report((device("l4-0", 8000, model="L4", simulated=0),), deadline_ms=DAY_MS)
    lab.set_teams(a="nominal_mb@L4=8000 borrow_mb@L4=0")
    asks = {"model": "L4", "memory_mb": 8000, "ttl_ms": 2000}
    taken = {take(lab, "1", **asks)[5]}
    lab.skew(2100)
    lab.reap()
    cools = taken == {"l4-0"}
    assert lab.number("l4-0", "withheld_mb") == (8000 if cools else 0)
    assert HELD not in lab.hash("agents")
    audit(lab.redis, lab.keys)
    assert take(lab, "2", **asks)[0] == "GRANTED"
    audit(lab.redis, lab.keys)


def test_recovered_lease_counts_for_its_model(lab: Pool) -> None:
    """Also beyond the quota: a holder gets back what it has."""
    lab.set_teams(a="nominal_mb@L4=1000 borrow_mb@L4=0")
    ask = {"model": "L4", "memory_mb": 900, "team": "a"}
    grant = granted(lab.acquire(token("1"), "x", **ask))
    lab.release(token("1"))
    lab.redis.delete(lab.keys.done(token("1")))
    other = granted(lab.acquire(token("2"), "x", **ask))
    assert other.devices
    lab.redis.hset(lab.keys.pool, "run_id", "1")
    lab.by_hand()
    lab.skew(200)
    claim = (grant.fence, "30000", "", lab.hash("pool")["epoch"], "x",
             f"{grant.devices[0][0]}=900", "900|1|0|30000|0|0|*|L4|spread|refuse", "c", "1:1",
             "a")  # fmt: skip
    assert said(lab.run("renew", 1, token("1"), *claim))[0] == "RENEWED"
    assert lab.hash("agents")[HELD] == "1800"
    audit(lab.redis, lab.keys)


def test_scripts_of_the_version_before_are_refused(lab: Pool) -> None:
    """They would leave sums by model wrong: their schema is 4, and the pool's is 4+models."""
    lab.set_teams(a="nominal_mb@L4=1000")
    before = {verb: script.source for verb, script in lab.scripts.items()}
    knows_no_models = before["acquire"].replace("and schema ~= WITH_MODELS ", "")
    assert knows_no_models != before["acquire"]
    sha: Any = lab.redis.script_load(knows_no_models)
    call = lab.redis.evalsha(
        sha, 1, lab.keys.base, 1, token("1"), "x", 1000, 1, 0, 30_000, 0, 0, "*", "*", "spread",
        "refuse", "c", "1:1", "", 0,
    )  # fmt: skip
    assert said(call) == ["REFUSED", "protocol_mismatch", "4+models"]
    lab.set_teams(a="nominal_mb=1000")
    assert lab.hash("pool")["schema"] == "4"


@pytest.mark.parametrize(
    "line",
    [
        "nominal_mb@=1", "weight@L4=1", "nominal_mb@L4=x", "nominal_mb@L/4=1", "lend_mb@L4=1",
        "nominal_mb@L4=99999999999999", f"nominal_mb@{'m' * 65}=1", "nominal_mb@L 4=1",
        " ".join(f"nominal_mb@m{n}=1" for n in range(17)),
    ],
)  # fmt: skip
def test_quota_by_model_that_is_not_well_formed_is_refused(lab: Pool, line: str) -> None:
    """And nothing of the call is written."""
    lab.set_teams(a="nominal_mb@L4=1")
    assert said(lab.set_teams(b="weight=1", a=line))[:2] == ["REFUSED", "bad_request"]
    assert lab.hash("teams") == {"a": "nominal_mb@L4=1"}
    most = " ".join(f"nominal_mb@{'m' * 60}.{n}=9999999999999" for n in range(16))
    assert said(lab.set_teams(a=most))[0] == "POLICY"


def test_own_of_a_model_comes_before_borrowers_of_it(lab: Pool) -> None:
    """Quota goes before rank: on an H100 team a is within its quota, on an L4 team b."""
    lab.set_teams(a="nominal_mb@NVIDIA+H100=99999", b="nominal_mb@L4=99999")
    for uuid, model in enumerate(("L4", "L4", "NVIDIA H100", "NVIDIA H100")):
        take(lab, f"x{uuid}", team="default", model=model, exclusive=1)
    for name, team, priority in (("b", "b", 9), ("a", "a", 0)):
        wait(lab, name, team=team, exclusive=1, priority=priority)
    lab.release(token("x2"))
    assert (state(lab, "a"), state(lab, "b")) == ("offered", "waiting")
    wait(lab, "a2", team="a", exclusive=1, priority=9)
    lab.release(token("x0"))
    assert (state(lab, "b"), state(lab, "a2")) == ("offered", "waiting")
    audit(lab.redis, lab.keys)


def test_reclaim_takes_from_borrowers_of_that_model_alone(lab: Pool) -> None:
    """Team b is over its quota of H100, and within that of L4, whatever it has together."""
    lab.set_policy(reclaim_after_s=5, min_runtime_s=0, preempt_grace_s=5)
    lab.set_teams(a="nominal_mb@NVIDIA+H100=16000", b="nominal_mb@L4=16000", c="weight=1")
    for n, model in enumerate(("L4", "L4", "NVIDIA H100")):
        take(lab, f"b{n}", team="b", model=model, exclusive=1, ttl_ms=0)
    lab.skew(1000)
    take(lab, "c", team="c", model="NVIDIA H100", exclusive=1, ttl_ms=0)
    lab.skew(1000)
    for _ in range(3):
        wait(lab, "a", exclusive=1)
        wait(lab, "a-l4", model="L4", exclusive=1)
        lab.live_on(4000)
    noticed = [name for name in ("b0", "b1", "b2", "c")
               if "preempt_at_ms" in lab.hash(f"record:{token(name)}")]  # fmt: skip
    assert noticed == ["c"], "the youngest of those that hold H100 beyond their quotas"
    assert lab.hash(f"record:{token('c')}")["preempt_for"] == token("a")
    assert lab.hash("agents")["team a#reserved NVIDIA H100"] == "16000"
    audit(lab.redis, lab.keys)
    lab.live_on(6000)
    lab.renew(token("c"))
    assert wait(lab, "a", exclusive=1)[0] == "GRANTED"
    audit(lab.redis, lab.keys)


def test_head_that_a_quota_holds_back_on_one_model_gets_it_when_that_falls(lab: Pool) -> None:
    """It waits for an H100, which others hold, or for quota of L4, of which there is room."""
    lab.set_teams(a="nominal_mb@L4=3000 borrow_mb@L4=0")
    for n in range(2):
        take(lab, f"x{n}", team="default", model="NVIDIA H100", exclusive=1)
    take(lab, "1", model="L4", memory_mb=2000, placement="pack")
    take(lab, "2", team="default", model="L4", memory_mb=6000, placement="pack")
    assert wait(lab, "w", memory_mb=3000) == ["WAITING", 0]
    assert "capped" not in lab.hash(f"record:{token('w')}")
    lab.release(token("1"))
    assert state(lab, "w") == "offered"
    audit(lab.redis, lab.keys)


def test_head_that_its_agent_holds_back_on_one_model_gets_it_when_that_falls(lab: Pool) -> None:
    """A lease of another team ends elsewhere, and leaves its agent as much as an L4 has."""
    lab.policy(max_memory_per_agent_mb=9000)
    lab.set_teams(a="nominal_mb@L4=99999", b="weight=1")
    granted(lab.acquire(token("x"), "w", team="b", model="NVIDIA H100", memory_mb=3000))
    for name in ("y", "z"):
        take(lab, name, team="default", model="NVIDIA H100", memory_mb=9000)
    assert wait(lab, "w", memory_mb=3000, exclusive=1) == ["WAITING", 0]
    assert "capped" not in lab.hash(f"record:{token('w')}")
    lab.release(token("x"))
    assert lab.hash(f"record:{token('w')}")["devices"].endswith("=8000")
    audit(lab.redis, lab.keys)


def calls_of_a_release(pool: Pool, hosts: int) -> int:
    """Commands of a release whose team has a head without a model waiting for each host."""
    for n in range(hosts):
        pool.report((device(f"gpu-{n}", 1000, model="L4"),), host=f"h{n}", deadline_ms=DAY_MS)
    pool.report((device("big", 1000, model="H100"),), host="far", deadline_ms=DAY_MS)
    pool.set_teams(a=f"nominal_mb@L4={1000 * hosts} nominal_mb@H100=1000")
    take(pool, "gone", model="H100")
    for n in range(hosts):
        take(pool, f"x{n}", host=f"h{n}", ttl_ms=0)
        assert wait(pool, f"w{n}", host=f"h{n}", memory_mb=900)[0] == "WAITING"
    assert pool.redis.scard(f"{pool.keys.base}:limited") == hosts
    reply, calls = commands(pool.redis, lambda: pool.release(token("gone")))
    assert reply[0] == "RELEASED"
    audit(pool.redis, pool.keys)
    return calls


def test_release_costs_the_same_beside_more_heads_without_a_model(pool: Pool) -> None:
    """S8: of those that a cap may have held back, a call looks at some."""
    more = Pool(pool.redis, shebang=pool.shebang, functions=pool.functions)
    assert calls_of_a_release(pool, 24) >= calls_of_a_release(more, 72)


def test_straight_path_knows_quotas_by_model(lab: Pool) -> None:
    """With its model named a lease costs the commands that it costs beside a pool-wide quota."""
    calls = []
    for line in ("nominal_mb=9000", "nominal_mb@L4=9000 nominal_mb@NVIDIA+H100=1"):
        lab.set_teams(a=line)
        for name in ("x", "y"):
            stats: Any = lab.redis.info("commandstats")
            assert take(lab, name, model="L4")[0] == "GRANTED"
            lab.release(token(name))
            lab.redis.delete(lab.keys.done(token(name)))
            lab.by_hand()
        after: Any = lab.redis.info("commandstats")
        calls.append(sum(after[each]["calls"] - stats[each]["calls"] for each in stats))
        assert take(lab, "z", model="L4", memory_mb=9001)[1] in {"agent_cap", "never_fits"}
        audit(lab.redis, lab.keys)
    assert calls[1] <= calls[0] + 1
