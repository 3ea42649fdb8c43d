"""Policies of teams: one declaration, Lua's table beside it, and how teams stand by them."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import get_type_hints

import pytest

from agent_sdk import (
    BadRequest,
)
from agent_sdk.scripts.source import lua_folder
from agent_sdk.state import caps as reading
from agent_sdk.teams.policy import (
    FIELDS,
    MODEL_FIELDS,
    MOST_MODELS,
    ModelQuota,
    TeamField,
    TeamPolicy,
    line_of,
    parse,
    policy_of,
)
from agent_sdk.teams.status import LOOK_AHEAD_S, TeamStatus, statuses
from agent_sdk.teams.sums import PartySums, decayed, sums_of
from tests.pools import Pool, device, granted, said, token

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with one GPU of 8,100 MiB, whose time only the test moves."""
    pool.freeze()
    pool.report((device("gpu-a", 8100),), deadline_ms=DAY_MS)
    return pool


def standing(pool: Pool) -> dict[str, TeamStatus]:
    """Every team by name."""
    return {x.name: x for x in pool.look(reading.read(pool.keys))}


def test_fields_are_those_of_the_script() -> None:
    """Each of them once, with its bounds, and a type for the checkers."""
    text = (lua_folder() / "lib" / "teams.lua").read_text()
    table = text[text.index("local FIELDS") : text.index("}\n\n")]
    found = {name: (int(a), int(b)) for name, a, b in
             re.findall(r"(\w+) = \{ (\d+), (\d+) \}", table)}  # fmt: skip
    assert found == {name: (of.least, of.most) for name, of in FIELDS.items()}
    assert get_type_hints(TeamPolicy).keys() == {*FIELDS, "models"}
    of_models = re.search(r"local OF_MODELS = \{(.*)\}", text)
    assert of_models
    assert re.findall(r"(\w+) = true", of_models[1]) == [*MODEL_FIELDS]
    assert get_type_hints(ModelQuota).keys() == {*MODEL_FIELDS}
    assert f"MOST_MODELS = 256, 4096, {MOST_MODELS}" in text
    assert all(of.label and of.meaning.endswith(".") for of in FIELDS.values())


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.name)
def test_value_is_taken_within_its_bounds_alone(gpu: Pool, field: TeamField) -> None:
    """By Lua and by the client; what is taken is read as it was said."""
    for value in (field.least, field.most):
        policy = policy_of({field.name: value})
        assert said(gpu.set_teams(lab=f"{field.name}={value}"))[0] == "POLICY"
        assert parse(f"{field.name}={value}") == policy
        assert parse(line_of(policy)) == policy
    for wrong in (field.least - 1, field.most + 1):
        assert said(gpu.set_teams(lab=f"{field.name}={wrong}"))[:2] == ["REFUSED", "bad_request"]
    for value in (field.least - 1, field.most + 1, "7", 1.5, True):
        with pytest.raises(BadRequest, match=f"{field.name} must be {field.least} to {field.most}"):
            policy_of({field.name: value})


@pytest.mark.parametrize(
    ("use", "mb", "seconds", "half_life_s", "wanted"),
    [
        (0, 8, 600, 600, 3462.468098), (1000, 0, 600, 600, 500.0), (1000, 0, 0, 600, 1000.0),
        (1000, 4, 300, 600, 1721.240207), (0, 8, 2_592_000, 86_400, 997_190.811334),
        (1000, 1, -5, 600, 1000.0), (1000, 4, 50, 0, 1200.0),
    ],
)  # fmt: skip
def test_use_decays_by_its_half_life(
    use: float, mb: int, seconds: int, half_life_s: int, wanted: float
) -> None:
    """Held memory accrues meanwhile, and time never goes back; half-life 0: nothing decays."""
    found = decayed(use, mb, seconds * 1000, half_life_s)
    assert found == pytest.approx(wanted, abs=1e-6)
    parts = use
    for begin, end in pairwise(range(0, max(0, seconds) * 1000 + 1, max(1, seconds * 250))):
        parts = decayed(parts, mb, end - begin, half_life_s)
    assert parts == pytest.approx(wanted)


def test_use_that_is_not_written_begins_now() -> None:
    """The scripts take it so, and not from the beginning of time on."""
    (sums,) = sums_of({"team a": "4000", "team a#leases": "1"}).values()
    assert sums.use_at(1_800_000_000_000, 0) == 0


def test_use_is_that_of_the_script_at_each_moment(gpu: Pool) -> None:
    """A reader between two changes sees what the next change writes."""
    gpu.policy(half_life_s=600)
    gpu.set_teams(lab="weight=2 nominal_mb=1000", ward="weight=0")
    granted(gpu.acquire(token("1"), team="lab", memory_mb=1000, ttl_ms=0))
    gpu.skew(300_000)
    granted(gpu.acquire(token("2"), team="lab", memory_mb=500, ttl_ms=0))
    gpu.skew(300_000)
    policies, sums = gpu.look(reading.parties(gpu.keys))
    gpu.release(token("2"))
    use, _, now_ms = gpu.hash("agents")["team lab#use"].partition("@")
    seen, ward = statuses(policies, sums, now_ms=int(now_ms), half_life_s=600, capacity_mb=8100)
    assert seen.use_mb_s == pytest.approx(float(use), rel=1e-9)
    ln2 = math.log(2)
    first = 1000 * 600 / ln2 * (1 - 2**-0.5)
    assert seen.use_mb_s == pytest.approx(first * 2**-0.5 + 1500 * 600 / ln2 * (1 - 2**-0.5))
    assert seen.share == pytest.approx((seen.use_mb_s + LOOK_AHEAD_S * 1500) / 2)
    assert (ward.share, ward.used_share, ward.wanted_share) == (None, 0.0, 0.0)
    assert (seen.used_share, seen.wanted_share) == (1.0, 1.0)


def test_teams_that_have_something_are_seen_without_a_policy(gpu: Pool) -> None:
    """PartySums by team are always there; agents and API keys are no teams."""
    granted(gpu.acquire(token("1"), "lab", owner="bot", memory_mb=100))
    granted(gpu.acquire(token("2"), "ann", team="lab", memory_mb=8000))
    said(gpu.acquire(token("3"), "ann", team="ward", memory_mb=500, wait_ms=9000))
    found = standing(gpu)
    assert {name: (x.used_mb, x.leases, x.waiters) for name, x in found.items()} == {
        "default": (100, 1, 0), "lab": (8000, 1, 0), "ward": (0, 0, 1),
    }  # fmt: skip
    assert not any(x.listed or x.borrowed_mb or x.lent_mb or x.use_mb_s for x in found.values())


def test_quota_is_lent_in_parts_of_what_is_left_of_it() -> None:
    """Memory in no quota is taken first; no team lends more than its limit."""

    def stand(capacity_mb: int, **lines: tuple[str, int]) -> dict[str, TeamStatus]:
        found = statuses(
            {name: parse(line) for name, (line, _) in lines.items()},
            {f"team {name}": PartySums(mb=mb, leases=1) for name, (_, mb) in lines.items()},
            now_ms=0, half_life_s=600, capacity_mb=capacity_mb,
        )  # fmt: skip
        return {x.name: x for x in found}

    quotas = {"a": ("nominal_mb=400", 900), "b": ("nominal_mb=400", 100),
              "c": ("nominal_mb=200 lend_mb=100", 0)}  # fmt: skip
    found = stand(1000, **quotas)
    assert {name: x.borrowed_mb for name, x in found.items()} == {"a": 500, "b": 0, "c": 0}
    assert {name: x.lent_mb for name, x in found.items()} == {"a": 0, "b": 300, "c": 100}
    found = stand(1300, **quotas)
    assert {name: x.lent_mb for name, x in found.items()} == {"a": 0, "b": 150, "c": 50}
    found = stand(1500, **quotas)
    assert {name: x.lent_mb for name, x in found.items()} == {"a": 0, "b": 0, "c": 0}


def test_quotas_by_model_are_read_as_they_are_written() -> None:
    """Mappings, lines and policies agree; a name that is none is refused."""
    said = {"NVIDIA H100": {"nominal_mb": 5, "borrow_mb": None}, "L4": {"borrow_mb": 0}}
    policy = policy_of({"nominal_mb": 7, "models": said})
    assert line_of(policy) == (
        "nominal_mb=7 nominal_mb@L4=0 borrow_mb@L4=0 nominal_mb@NVIDIA+H100=5"
    )
    assert parse(line_of(policy)) == policy
    assert (policy.own_mb, policy.quota("L4").most_mb) == (12, 0)
    assert policy.quota("A9") == ModelQuota(nominal_mb=7)
    assert policy_of({"models": None}) == TeamPolicy()
    for wrong in (
        {"L/4": {}}, {"L4": {"weight": 1}}, {"L4": {"nominal_mb": -1}}, {"L4": 5}, [1],
        {str(n): {} for n in range(MOST_MODELS + 1)},
    ):  # fmt: skip
        with pytest.raises(BadRequest):
            policy_of({"models": wrong})


def test_what_is_lent_is_of_each_model(pool: Pool) -> None:
    """A team that borrows an H100 borrows no L4, and memory in no quota is lent by no team."""
    gpus = (device("l", 4000, model="L4"), device("h", 9000, model="H100", index=1))
    pool.report(gpus, deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb@H100=8000", b="nominal_mb@L4=4000 nominal_mb@H100=0")
    granted(pool.acquire(token("b"), "b", team="b", model="H100", memory_mb=3000))
    a, b = standing(pool)["a"], standing(pool)["b"]
    assert (a.lent_mb, b.lent_mb, b.borrowed_mb, b.used_mb) == (2000, 0, 3000, 3000)
    assert {model: x.used_mb for model, x in b.by_model.items()} == {"L4": 0, "H100": 3000}
    assert (a.own_mb, a.borrowed_mb) == (8000, 0)
