"""The lease of a process: by its environment, its ancestors, and its past."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent_sdk.state.tombstones import EndedLease
from broker.attribution.ownership import Matcher
from tests.attribution.worlds import Nobody, holders, lease, program

if TYPE_CHECKING:
    from agent_sdk.state.snapshot import LeaseStatus
    from broker.attribution.processes import Program

A, B = "a" * 16, "b" * 16


def owners(
    matcher: Matcher,
    programs: list[Program],
    *leases: LeaseStatus,
    now: float = 0.0,
    **ended: EndedLease,
) -> dict[int, set[str]]:
    """Return the processes of each token."""
    held = holders(*leases, ended=ended)
    found = matcher.match({p.pid: p for p in programs}, held, now)
    return {pid: set(tokens) for pid, tokens in found.items()}


def test_match_finds_the_holder_its_children_and_theirs() -> None:
    """Whoever acquired it, and whatever that started."""
    held = lease(A, 100, 10)
    programs = [program(10, 1), program(11, 10, 1), program(12, 11, 10, 1), program(20, 1)]
    assert owners(Matcher(Nobody()), programs, held) == {10: {A}, 11: {A}, 12: {A}, 20: set()}


def test_match_takes_the_nearest_ancestor_that_holds_any() -> None:
    """A child that acquires for itself works under its own lease."""
    programs = [program(11, 10, 1), program(12, 11, 10, 1)]
    found = owners(Matcher(Nobody()), programs, lease(A, 100, 10), lease(B, 100, 11))
    assert found == {11: {B}, 12: {B}}


def test_match_by_the_environment_goes_before_ancestors() -> None:
    """A parent with two leases starts a child under one of them."""
    programs = [program(10), program(11, 10, token=B)]
    found = owners(Matcher(Nobody()), programs, lease(A, 100, 10), lease(B, 100, 10))
    assert found == {10: {A, B}, 11: {B}}


def test_match_with_a_token_nobody_knows_looks_at_the_ancestors() -> None:
    """An environment may be as old as its shell."""
    assert owners(Matcher(Nobody()), [program(11, 10, token=B)], lease(A, 100, 10)) == {11: {A}}


def test_match_remembers_who_outlives_its_parent_and_its_lease() -> None:
    """Orphaned twice, it is still known whose it was; another process of its pid is not."""
    matcher = Matcher(Nobody())
    owners(matcher, [program(11, 10)], lease(A, 100, 10))
    assert matcher.remembered == {A}
    assert owners(matcher, [program(11, 1)], lease(A, 100, 10)) == {11: {A}}
    assert owners(matcher, [program(11, 1)]) == {11: {A}}
    assert owners(matcher, [], now=200) == {}
    assert owners(matcher, [program(11, 1)], now=200) == {11: {A}}
    assert owners(matcher, [], now=600) == {}
    assert owners(matcher, [program(11, 1)], now=600) == {11: set()}, "not seen for minutes"
    owners(matcher, [program(11, 10)], lease(A, 100, 10), now=600)
    another = replace(program(11, 1), start=12, line=("11:12", "1:1"))
    assert owners(matcher, [another], now=600) == {11: set()}


def test_match_of_a_lease_that_ended_before_we_began_is_by_the_environment() -> None:
    """A reporter that starts anew finds the orphans of who handed its token on."""
    matcher = Matcher(Nobody())
    first = owners(matcher, [program(11, 1, token=A)])
    assert first == {11: set()}
    assert A in matcher.remembered, "so it asks how that ended"
    assert owners(matcher, [program(11, 1, token=A)], **{A: EndedLease("expired", 5)}) == {11: {A}}


def test_match_of_a_pid_without_a_start_time_finds_nobody() -> None:
    """A pid alone may be another process by now."""
    held = replace(lease(A, 100, 10), pid="10")
    assert owners(Matcher(Nobody()), [program(10)], held) == {10: set()}


def test_match_by_a_pid_that_shows_no_lease_finds_nobody() -> None:
    """Its caller said so, and nothing else does."""
    matcher = Matcher(Nobody("10:10", shown=False))
    assert owners(matcher, [program(10), program(11, 10)], lease(A, 100, 10)) == {
        10: set(), 11: set(),
    }  # fmt: skip
    assert matcher.claimed == set()


def test_match_by_a_pid_that_we_may_not_look_into_proves_nothing() -> None:
    """Its memory is reckoned to the lease that is said to have it; one that shows it goes first."""
    matcher = Matcher(Nobody("10:10", shown=None))
    assert owners(matcher, [program(10)], lease(A, 100, 10)) == {10: {A}}
    assert matcher.belongings[10].proven == set()
    assert matcher.belongings[10].living == {A}
    matcher = Matcher(Nobody(shown=None))
    owners(matcher, [program(10, token=A)], lease(A, 100, None))
    assert matcher.belongings[10].proven == {A}, "its environment is its own"


def test_match_keeps_what_a_process_showed_before_it_became_another_program() -> None:
    """exec closes what it showed; it is the same process."""
    system = Nobody("10:10")
    matcher = Matcher(system)
    owners(matcher, [program(10)], lease(A, 100, 10))
    system.shown = False
    assert owners(matcher, [program(10)], lease(A, 100, 10)) == {10: {A}}
    assert matcher.belongings[10].proven == {A}


def test_match_names_living_leases_of_every_path() -> None:
    """An ancestor's environment, its own registration, and what it was before."""
    matcher = Matcher(Nobody())
    programs = [program(12, 11, inherited=B)]
    assert owners(matcher, programs, lease(A, 100, 11), lease(B, 100, None)) == {12: {A}}
    assert matcher.belongings[12].living == {A, B}
    owners(matcher, [program(12, 1)], lease(A, 100, 11), lease(B, 100, None))
    assert matcher.belongings[12].living == {A}
