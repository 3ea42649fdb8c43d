"""A preemption whose primary is killed, and whose replica lacks nothing, the notice, or the end."""

from __future__ import annotations

import select
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import eventually
from tests.faults.preempting import Lab, line
from tests.stores import Sentinels, sentinels

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

GRACE_S, TTL_S = 6, 30
"""A notice that outlasts the failover, and leases that outlast the time for which it closes."""

CLOSED_S = 10

PARTED_MS = 1500
"""Time before the end when replicas are left behind: for long, and none of them may lead."""

ENDS = ("preempted", "expired", "revoked", "released")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Sentinels]:
    """One that every test leaves whole."""
    with sentinels() as fleet:
        yield fleet


@pytest.fixture
def lab(fleet: Sentinels, pool_name: str) -> Iterator[Lab]:
    """It is consistent at the end, at the primary that is left."""
    lab = Lab(fleet.url, fleet.primary(), pool_name, GRACE_S)
    with lab.client:
        yield lab
        lab.check()
    fleet.mend()


def fail_over(fleet: Sentinels, lab: Lab, *, replicated: bool) -> None:
    """Kill the primary, and look at the next one from now on."""
    fleet.fail_over(replicated=replicated)
    fleet.join()
    lab.look_at(fleet.primary())


def silent(process: subprocess.Popen[str]) -> bool:
    """Tell whether it has said no more."""
    return not select.select([process.stdout], [], [], 0)[0]


def ends(lab: Lab, agent: str) -> list[str]:
    """List how its leases ended, by the events that the store has."""
    return [event for event in lab.events(agent=agent) if event in ENDS]


def check_handed_over(lab: Lab, asker: subprocess.Popen[str]) -> None:
    """Check that the asker has what one end of its victim freed, and keeps it."""
    assert lab.of("asker")
    assert not lab.of("victim")
    assert ends(lab, "victim") == ["preempted"]
    assert ends(lab, "asker") == []
    assert lab.verbs.stats()["preempted"] == 1
    assert not lab.noticed()
    assert silent(asker)


def test_notice_that_a_replica_has_goes_on_after_a_failover(fleet: Sentinels, lab: Lab) -> None:
    """It says the same time; the lease ends by it once, and the memory is the asker's."""
    with lab.agent("victim", "b", ttl_s=TTL_S) as victim:
        assert line(victim) == "held"
        with lab.agent("asker", "a", wait_s=120, ttl_s=TTL_S) as asker:
            lab.until_step("noticed")
            before = lab.notices()
            fail_over(fleet, lab, replicated=True)
            assert lab.notices() == before
            assert line(asker) == "held"
            assert line(victim) == "lost"
            assert lab.client.pool().now_ms >= before[0]
            assert lab.events("preempting") == ["preempting"]
            check_handed_over(lab, asker)


def test_notice_that_no_replica_has_is_given_anew(fleet: Sentinels, lab: Lab) -> None:
    """The pool closes, the victim holds on, and has all of its time by the second notice."""
    with lab.agent("victim", "b", ttl_s=TTL_S) as victim, ExitStack() as stack:
        assert line(victim) == "held"
        asker = stack.enter_context(lab.agent("asker", "a", wait_s=120, ttl_s=TTL_S))
        lab.until_step("waiting")
        with lab.verbs.redis as primary:
            assert primary.wait(2, 2000) == 2
        fleet.part()
        lab.until_step("noticed")
        (forgotten_ms,) = lab.notices()
        fail_over(fleet, lab, replicated=False)
        assert lab.notices() == []
        assert lab.of("victim")
        eventually(lambda: lab.events("closed"), 5)
        lab.until_step("noticed")
        (at_ms,) = lab.notices()
        assert at_ms > forgotten_ms
        assert at_ms > lab.client.pool().now_ms + (GRACE_S - 1) * 1000
        assert line(asker) == "held"
        assert lab.client.pool().now_ms >= at_ms
        assert line(victim) == "lost"
        check_handed_over(lab, asker)


def test_end_that_no_replica_has_is_not_undone(fleet: Sentinels, lab: Lab) -> None:
    """The replica still has the victim, and a head that waits: who was granted it keeps it."""
    with lab.agent("victim", "b", ttl_s=TTL_S) as victim:
        assert line(victim) == "held"
        with lab.agent("asker", "a", wait_s=120, ttl_s=TTL_S) as asker:
            lab.until_step("noticed")
            (at_ms,) = lab.notices()
            eventually(lambda: lab.client.pool().now_ms > at_ms - PARTED_MS, GRACE_S + 1)
            with lab.verbs.redis as primary:
                assert primary.wait(2, 2000) == 2
            fleet.part()
            assert line(asker) == "held"
            assert line(victim) == "lost"
            fail_over(fleet, lab, replicated=False)
            assert lab.of("victim")
            eventually(lambda: lab.events("recovered", "asker"), CLOSED_S + 10)
            check_handed_over(lab, asker)
