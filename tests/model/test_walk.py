"""Random walks of real pools beside their models, the same ones each time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.model.planted import planted
from tests.model.reservation_bugs import IN_PAGES
from tests.model.run import CHAPTER, Failure
from tests.model.walk import Walk

if TYPE_CHECKING:
    from tests.model.run import World

STEPS = 800
"""Steps of a walk; `make model` goes on for as many as it is told."""

TEAM_WALKS = {"team": "1", "tug": "13", "quota": "1", "relapse": "1", "favour": "17", "models": "1",
              "upheaval": "2"}  # fmt: skip
"""Kinds of steps of teams, with a seed that comes to all of their events."""

TEAM_EVENTS = {
    "tug": ("preempting", "preempted", "preemption_withdrawn"),
    "relapse": ("preempting", "preempted", "preemption_withdrawn"),
    "favour": ("wanted", "extended"),
    "models": ("preempting", "preempted", "reserved"),
    "upheaval": ("preempting", "preemption_withdrawn", "revoke"),
}

LIVES = sorted((Path(__file__).parent / "lives").glob("*.json"))

RARE = {
    "granted", "offered", "reserved", "reservation_ended", "timed_out", "cancelled", "expired",
    "revoked", "cooled", "closed",
    "host_away", "policy", "WAITING", "RENEWED", "RELEASED", "ALREADY", "UNKNOWN", "CONFLICT",
    "LOST expired", "LOST revoked", "LOST released", "REFUSED no_capacity", "REFUSED closed",
    "REFUSED safe_mode", "REFUSED never_fits", "REFUSED host_unknown",
}  # fmt: skip
"""Kinds of events and of answers that some walk must come to."""


@pytest.mark.slow
def test_walk_finds_no_violation(world: World) -> None:
    """S1 to S7, S10, S11, L1, L3 in three pools at once."""
    assert world.walk("1", STEPS) == STEPS


@pytest.mark.slow
def test_walk_of_functions_finds_no_violation(world_of_functions: World) -> None:
    """The same, by the way that the SDK takes; `make model` goes on from here."""
    assert world_of_functions.walk("2", STEPS) == STEPS


@pytest.mark.slow
def test_walk_of_versions_side_by_side_finds_no_violation(world_of_functions: World) -> None:
    """Two libraries and scripts on calm pools: what a library keeps is void when it should be."""
    world_of_functions.often = "mix"
    try:
        assert world_of_functions.walk("3", STEPS) == STEPS
    finally:
        world_of_functions.often = ""


@pytest.mark.slow
def test_walk_of_what_vanishes_finds_no_violation(world: World) -> None:
    """Devices and hosts go and come back, by themselves and by an operator's word."""
    world.often = "vanish"
    try:
        assert world.walk("3", STEPS) == STEPS
    finally:
        world.often = ""
    names = {
        entry["event"] for pool in world.pools for _, entry in pool.redis.xrange(pool.keys.events)
    }
    assert {"device_forgotten", "host_forgotten"} <= names


@pytest.mark.slow
def test_walk_of_other_terms_finds_no_violation(world: World) -> None:
    """Devices take one lease at a time, or are whole beside more use, by their hosts' word."""
    world.often = "terms"
    try:
        assert world.walk("1", STEPS) == STEPS
    finally:
        world.often = ""


@pytest.mark.slow
@pytest.mark.parametrize(("often", "seed"), TEAM_WALKS.items())
def test_walk_of_teams_finds_no_violation(
    world: World, world_of_functions: World, often: str, seed: str
) -> None:
    """Q1 to Q4: quotas change, teams borrow, and leases end for those that it belongs to."""
    for each in (world, world_of_functions):
        each.often = often
        try:
            assert each.walk(seed, STEPS) == STEPS
        finally:
            each.often = ""
        names = {
            entry["event"]
            for pool in each.pools
            for _, entry in pool.redis.xrange(pool.keys.events)
        }
        assert names >= {"teams", *TEAM_EVENTS.get(often, ())}


@pytest.mark.slow
def test_walk_by_small_pages_finds_no_violation(world: World) -> None:
    """L3 where a head looks at two devices, or one group, at a poll: it comes to all of them."""
    with planted(world, IN_PAGES):
        assert world.walk("8", STEPS) == STEPS


def test_walk_reaches_what_is_rare(world: World) -> None:
    """Each kind of event and of answer is among its steps: a walk checks nothing else."""
    seen = set[str]()
    for seed in range(2, 10):  # the walk of 2 came to all of it, when that was looked at
        walk, lives = Walk(random.Random(f"{seed}/0")), world.begin()
        for _ in range(CHAPTER):
            step = walk.next()
            if reply := lives[step[0]].step(step[1], step[2]):
                coded = reply[0] in {"REFUSED", "LOST"}
                seen.add(" ".join(map(str, reply[:2])) if coded else reply[0])
        for life in lives:
            found = life.pair.pool.redis.xrange(life.pair.pool.keys.events)
            seen |= {entry["event"] for _, entry in found}
        if seen >= RARE:
            break
    assert RARE - seen == set()


@pytest.mark.parametrize("path", LIVES, ids=[path.stem for path in LIVES])
def test_life_that_once_stopped_a_walk_goes_on(
    world: World, world_of_functions: World, path: Path
) -> None:
    """The steps that a long walk was shrunk to, when the model or the verbs were wrong."""
    assert world.fails(json.loads(path.read_text())) is None
    assert world_of_functions.fails(json.loads(path.read_text())) is None


@pytest.mark.slow
def test_late_reply_is_waited_for(world: World) -> None:
    """The client alone gives up after 5 s, and sends a call again, which no model does."""
    assert world.pools[0].redis.execute_command("DEBUG", "SLEEP", "5.5") == "OK"


def test_same_seed_makes_the_same_steps() -> None:
    """A failure can be repeated: all that a step says comes from the seed."""
    first, second = Walk(random.Random("7")), Walk(random.Random("7"))
    assert [first.next() for _ in range(500)] == [second.next() for _ in range(500)]


def test_failure_is_shrunk_to_the_steps_that_matter(world: World) -> None:
    """The steps that make a call fail stay of fifty; the rest is left out."""
    walk = Walk(random.Random("9"))
    steps = [walk.next() for _ in range(50)] + [[9, "reap", {}]]
    failure = world.fails(steps)
    assert isinstance(failure, Failure)
    assert world.shrink(failure).steps == [[9, "reap", {}]]
