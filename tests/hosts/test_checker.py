"""The checker finds each kind of violation, and nothing in a history where all is well."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent_sdk.leases.lease import HeldLease
from agent_sdk.protocol.messages import Device, Grant
from agent_sdk.state.events import Event
from tests.hosts import history
from tests.hosts.checker import Fault, PoolSaid, violations
from tests.hosts.history import History, Starved, Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AHEAD_MS = 1_000_000.0
"""Milliseconds by which the pool's clock is ahead in these stories."""

CAPACITIES = {"SIM-a-0": 1000, "SIM-a-1": 1000, "SIM-b-0": 1000}

HOSTS = {uuid: uuid[4] for uuid in CAPACITIES}


class Story:
    """A pool's stream and its agents' histories, told in order."""

    def __init__(self) -> None:
        self.history = History()
        self.events: list[Event] = []
        self.left: tuple[str, ...] = ()
        self.faults: list[Fault] = []

    def tell(self, at: float, event: str, **fields: str) -> None:
        """An event in the stream."""
        said = f"{round(at * 1000 + AHEAD_MS)}-{len(self.events)}"
        self.events.append(Event(said, event, fields))

    def lease(
        self, token: str, since: float, until: float, mb: int = 600, device: str = "SIM-a-0",
        how: str = "released", exclusive: bool = False, asked: str = "",
    ) -> Window:  # fmt: skip
        """A lease from its grant to its end, as both sides saw it; it was renewed all the while."""
        fence = round(since * 1_000_000)
        host = HOSTS[device]
        about = {"token": token, "devices": f"{device}={mb}", "fence": str(fence)}
        self.tell(since - 0.01, "granted", **about)
        self.tell(until + 0.01, how, **about)
        trust = until + 2 if how == "released" else until
        ended = None if how == "expired" else until
        window = Window(
            who=f"agent-{host}", host=host, asked=asked or host, token=token, fence=fence,
            devices={device: mb}, exclusive=exclusive, asked_at=since - 0.02, since=since,
            until=trust, renewed_at=trust - 2, ended_at=ended, renewals=1,
        )  # fmt: skip
        self.history.windows.append(window)
        return window

    def wrong(self) -> list[str]:
        """Return the checker's findings on the stream, in the order of its times."""
        events = sorted(self.events, key=lambda event: event.at_ms)
        said = PoolSaid(tuple(events), CAPACITIES, HOSTS, self.left, AHEAD_MS, deadline_s=1.5)
        return violations(self.history, said, self.faults)


def peaceful() -> Story:
    """Two who share, one after them alone, one on another host, one whose holder was killed."""
    story = Story()
    story.tell(0, "host_up", host="a")
    story.tell(0, "host_up", host="b")
    story.lease("first", 1, 3, mb=400)
    story.lease("second", 2, 4)
    story.lease("alone", 5, 8, mb=1000, exclusive=True)
    story.lease("elsewhere", 5.5, 8, device="SIM-b-0", asked="any")
    story.lease("dead", 9, 12, how="expired")
    return story


def window_of(story: Story, token: str) -> Window:
    (window,) = [w for w in story.history.windows if w.token == token]
    return window


def test_history_where_all_is_well_has_no_violation() -> None:
    """Sharing, taking turns and dying are allowed."""
    assert peaceful().wrong() == []


def test_answer_that_is_read_after_its_trust_was_never_believed() -> None:
    """A holder that is stopped between the grant and its answer: another may have the device."""
    story = peaceful()
    stopped = story.lease("stopped", 13, 16, mb=1000, how="expired", exclusive=True)
    story.lease("next", 17, 19, mb=1000)
    stopped.since = stopped.renewed_at = stopped.ended_at = 18
    stopped.lost = "expired"
    story.history.starved.append(Starved(stopped.who, 13, 18))
    assert story.wrong() == []
    stopped.until = stopped.ended_at = 18.5
    assert any(violation.startswith("together") for violation in story.wrong())


def believes_beyond_capacity(story: Story) -> None:
    story.lease("third", 2.5, 2.9, mb=100)
    story.events = [e for e in story.events if e.token != "third"]


def shares_an_exclusive_device(story: Story) -> None:
    window_of(story, "alone").devices["SIM-a-0"] = 100
    story.lease("intruder", 6, 7, mb=100)


def grants_beyond_capacity(story: Story) -> None:
    extra = {"token": "unseen", "devices": "SIM-a-0=500", "fence": "2100000"}
    story.tell(2.1, "granted", **extra)
    story.tell(2.2, "released", **extra)


def grants_a_smaller_fence(story: Story) -> None:
    late = window_of(story, "alone")
    late.fence = 7
    story.events = [
        replace(e, fields=e.fields | {"fence": "7"}) if e.token == "alone" else e
        for e in story.events
    ]


def hands_out_a_smaller_fence_unseen_by_the_stream(story: Story) -> None:
    window_of(story, "alone").fence = 7


def loses_a_lease_that_was_renewed(story: Story) -> None:
    window_of(story, "second").lost = "superseded"


def loses_a_lease_in_a_cut_too_short(story: Story) -> None:
    window_of(story, "second").lost = "unreachable"
    story.faults = [Fault("cut", 2.5, 2.6, frozenset({"a"}))]


def leaves_a_token(story: Story) -> None:
    story.left = ("second",)


def never_ends_one(story: Story) -> None:
    story.events = [e for e in story.events if (e.token, e.event) != ("dead", "expired")]


def ends_one_that_is_believed_in(story: Story) -> None:
    window_of(story, "second").ended_at = 4.5


def ends_one_long_after(story: Story) -> None:
    story.events = [e for e in story.events if (e.token, e.event) != ("dead", "expired")]
    about = {"token": "dead", "devices": "SIM-a-0=600", "fence": "9000000"}
    story.tell(20, "expired", **about)


def grants_twice(story: Story) -> None:
    again = {"token": "first", "devices": "SIM-a-1=400", "fence": "20000000"}
    story.tell(20, "granted", **again)


def ends_twice(story: Story) -> None:
    again = {"token": "first", "devices": "SIM-a-0=400", "fence": "1000000"}
    story.tell(20, "expired", **again)


def tells_its_holder_another_device(story: Story) -> None:
    window_of(story, "first").devices = {"SIM-a-1": 400}


def grants_abroad(story: Story) -> None:
    window_of(story, "elsewhere").asked = "a"


def grants_nothing(story: Story) -> None:
    window_of(story, "first").devices = {}


def grants_on_a_host_that_is_away(story: Story) -> None:
    story.tell(4.5, "host_away", host="a")


def grants_on_a_host_that_is_silent(story: Story) -> None:
    story.faults = [Fault("cut", 1, 6, silent=frozenset({"b"}))]


SEEDED: dict[str, Callable[[Story], None]] = {
    "together": believes_beyond_capacity,
    "together: 200": shares_an_exclusive_device,
    "over capacity": grants_beyond_capacity,
    "fence back": grants_a_smaller_fence,
    "fence back: alone": hands_out_a_smaller_fence_unseen_by_the_stream,
    "lost: second": loses_a_lease_that_was_renewed,
    "lost": loses_a_lease_in_a_cut_too_short,
    "lives for ever": leaves_a_token,
    "no trace: dead": never_ends_one,
    "too early": ends_one_that_is_believed_in,
    "too late": ends_one_long_after,
    "granted twice": grants_twice,
    "ended without a grant": ends_twice,
    "another lease": tells_its_holder_another_device,
    "abroad": grants_abroad,
    "abroad: first": grants_nothing,
    "away": grants_on_a_host_that_is_away,
    "silent": grants_on_a_host_that_is_silent,
}


@pytest.mark.parametrize(("says", "seed"), SEEDED.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_seeded_violation_is_found(says: str, seed: Callable[[Story], None]) -> None:
    """Each is told, by its own name."""
    story = peaceful()
    seed(story)
    assert any(wrong.startswith(says) for wrong in story.wrong()), story.wrong()


@pytest.mark.parametrize("whom", ["a", "agent-a"])
def test_loss_is_explained_by_a_cut_that_outlasted_the_trust(whom: str) -> None:
    """The host was cut off, or the process did not run."""
    story = peaceful()
    dead = window_of(story, "dead")
    dead.lost, dead.ended_at = "unreachable", dead.until
    assert story.wrong() != []
    story.faults = [Fault("cut", 10.5, 13, frozenset({whom}))]
    assert story.wrong() == []


def test_loss_is_explained_by_a_process_that_was_not_let_run() -> None:
    """The process says so itself."""
    story = peaceful()
    dead = window_of(story, "dead")
    dead.lost, dead.ended_at = "expired", dead.until
    story.history.starved.append(Starved("agent-a", 10.5, 12.5))
    assert story.wrong() == []


def after_failover(newer_fence: int = 0) -> Story:
    """A grant that the old master alone knew, and one that the new master made in its place."""
    story = Story()
    older = story.lease("older", 1, 6, mb=1000, exclusive=True)
    older.lost, older.until, older.renewed_at = "superseded", 6, 4
    story.events.clear()
    newer = story.lease("newer", 5, 8, mb=1000, exclusive=True)
    newer.fence = newer_fence or newer.fence
    story.faults = [Fault("failover", 3, 4.5, failover=True)]
    return story


def test_overlap_after_a_failover_is_told_to_the_lower_fence() -> None:
    """Asynchronous replication allows two holders, until the older asks next."""
    assert after_failover().wrong() == []


@pytest.mark.parametrize(("until", "fine"), [(6, True), (14, True), (15, False)])
def test_forgotten_lease_whose_trust_runs_out_while_holders_renew_is_lost(
    until: float, fine: bool
) -> None:
    """The new primary still counts an ended lease as holding its room; until the pool opens."""
    story = after_failover()
    older = window_of(story, "older")
    older.lost, older.until, older.renewed_at = "unreachable", until, 2
    story.history.windows = [older]
    assert any(wrong.startswith("lost") for wrong in story.wrong()) != fine


def test_overlap_after_a_failover_is_a_violation_without_that() -> None:
    """The older was renewed after the newer's grant; or was not told; or there was no failover."""
    renewed, untold, none = after_failover(), after_failover(), after_failover()
    window_of(renewed, "older").renewed_at = 5.5
    window_of(untold, "older").lost = None
    none.faults = []
    for story in (renewed, untold, none):
        assert any(wrong.startswith("together") for wrong in story.wrong())


def test_lease_that_was_forgotten_and_recovered_is_accounted_for() -> None:
    """It is on its device from then on, with the fence that it had."""
    story = after_failover()
    story.faults = [Fault("failover", 1.5, 2, failover=True)]
    older = window_of(story, "older")
    about = {"token": "older", "devices": "SIM-a-0=1000", "fence": str(older.fence)}
    story.tell(2.5, "recovered", **about)
    older.lost, older.ended_at = None, 4.9
    assert [wrong.partition(":")[0] for wrong in story.wrong()] == ["over capacity"]
    story.tell(4.91, "released", **about)
    assert story.wrong() == []


def test_loss_after_a_failover_needs_a_grant_that_was_forgotten() -> None:
    """A lease that the new primary knows is not lost by a holder that could reach it in time."""
    story = after_failover()
    story.faults = [Fault("failover", 1.5, 2, cut=frozenset({"a"}), failover=True)]
    older = window_of(story, "older")
    older.ended_at = older.until = 4.9
    assert story.wrong() == []
    about = {"token": "older", "devices": "SIM-a-0=1000", "fence": str(older.fence)}
    story.tell(0.99, "granted", **about)
    story.tell(4.91, "expired", **about)
    assert [wrong.partition(":")[0] for wrong in story.wrong()] == ["lost"]


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The lines of one process, read by another, are the same history."""
    grant = window_of(peaceful(), "first")
    diary = history.Diary(tmp_path / "one", who="agent-a", host="a")
    lease = _held(grant)
    diary.called("acquire", 0.5, "no_capacity")
    diary.granted(lease, 0.6, exclusive=True, asked="any")
    diary.renewed(lease)
    diary.starved(0.7)
    diary.ended(lease, "expired")
    found = history.read([tmp_path / "one"])
    (window,) = found.windows
    assert (window.token, window.fence, window.devices) == ("first", grant.fence, grant.devices)
    assert (window.exclusive, window.asked, window.lost) == (True, "any", "expired")
    assert (window.renewals, window.asked_at) == (1, 0.6)
    assert window.since < window.renewed_at < (window.ended_at or 0)
    assert [(call.verb, call.code) for call in found.calls] == [("acquire", "no_capacity")]
    assert [starved.since for starved in found.starved] == [0.7]
    assert found.failed() == []


def _held(window: Window) -> HeldLease:
    devices = tuple(Device(uuid, 0, window.host, uuid, mb) for uuid, mb in window.devices.items())
    return HeldLease(
        Grant(
            token=window.token, agent="a", fence=window.fence, expires_at_ms=0, remaining_ms=0,
            ttl_ms=2000, reason=None, devices=devices, trusted_until=window.until,
        )
    )  # fmt: skip


def test_event_is_when_a_reader_had_it_where_the_pools_clock_stepped() -> None:
    """Ten minutes back in the stream: its times would have ended everything before it began."""
    story = peaceful()
    seen = {event.id: (event.at_ms - AHEAD_MS) / 1000 for event in story.events}
    story.events = [replace(e, id=f"{e.at_ms - 600_000}-{n}") for n, e in enumerate(story.events)]
    story.events.sort(key=lambda event: event.at_ms)
    moved = {e.id: at for e, at in zip(story.events, sorted(seen.values()), strict=True)}
    said = PoolSaid(tuple(story.events), CAPACITIES, HOSTS, (), AHEAD_MS, 1.5, seen=moved)
    assert violations(story.history, said, []) == []
    assert violations(story.history, replace(said, seen={}), []) != []
