"""Owners of names: two reporters under one, a device of two hosts, names nearly alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pools import device, said

if TYPE_CHECKING:
    from tests.pools import Pool

ONE, AGAIN, OTHER = "boot1.m.ns.10.100", "boot1.m.ns.11.101", "boot2.m.ns.10.100"
"""Two reporters of one machine, and one of another."""

A, B = device("gpu-a"), device("gpu-b")


def by(reporter: str, over: str = "") -> tuple[str, str]:
    return reporter, over


def test_second_machine_of_a_name_is_refused_while_the_first_lives(pool: Pool) -> None:
    """It learns which one has it; nothing of it is taken; the first learns at its next report."""
    assert said(pool.report((A,), by=by(ONE))) == ["REPORTED"]
    before = pool.hash("host:h1")
    assert said(pool.report((B,), by=by(OTHER))) == ["REFUSED", "host_taken", ONE]
    assert pool.hash("device:gpu-b") == {}
    assert pool.hash("host:h1") | {"rival": "", "rival_ms": ""} == before | {
        "rival": "", "rival_ms": "",
    }  # fmt: skip
    assert said(pool.report((A,), by=by(ONE))) == ["REPORTED", OTHER, ""]
    assert pool.events().count("host_contested") == 1
    pool.report((B,), by=by(OTHER))
    assert pool.events().count("host_contested") == 1, "it is the same one"


def test_second_machine_with_the_same_devices_is_refused_too(pool: Pool) -> None:
    """A clone of a machine has its UUIDs."""
    pool.report((A,), by=by(ONE))
    assert said(pool.report((A,), by=by(OTHER)))[:2] == ["REFUSED", "host_taken"]
    assert said(pool.report((), by=by(OTHER)))[:2] == ["REFUSED", "host_taken"], "a heartbeat"


def test_second_machine_has_the_name_when_the_first_is_silent_past_its_deadline(
    pool: Pool,
) -> None:
    """And the first is refused then."""
    pool.report((A,), deadline_ms=1000, by=by(ONE))
    pool.skew(1100)
    assert said(pool.report((B,), by=by(OTHER))) == ["REPORTED"]
    assert said(pool.report((A,), by=by(ONE)))[:2] == ["REFUSED", "host_taken"]


def test_reporter_that_is_started_anew_takes_over_at_once(pool: Pool) -> None:
    """By a device in common, or by its word that the one before is over."""
    pool.report((A,), by=by(ONE))
    assert said(pool.report((A,), by=by(AGAIN))) == ["REPORTED"]
    assert said(pool.report((B,), by=by(ONE))) == ["REFUSED", "host_taken", AGAIN]
    assert said(pool.report((B,), by=by(ONE, AGAIN)))[0] == "REPORTED"


def test_replicas_of_one_machine_report_in_turn(pool: Pool) -> None:
    """They see what it has; neither is a rival of the other."""
    for _ in range(3):
        for reporter in (ONE, AGAIN):
            assert said(pool.report((A, B), by=by(reporter))) == ["REPORTED"]
            assert said(pool.report((), by=by(reporter))) == ["REPORTED"]
    assert "host_contested" not in pool.events()


def test_reporter_of_a_version_that_does_not_say_who_it_is_is_taken(pool: Pool) -> None:
    """It is taken as ever; the first reporter that says it after that one has the name."""
    pool.report((A,), by=by(ONE))
    assert said(pool.report((B,))) == ["REPORTED"]
    assert said(pool.report((A,), by=by(OTHER))) == ["REPORTED"]


def test_device_of_two_hosts_stays_with_the_first_while_that_lives(pool: Pool) -> None:
    """The second is told which host has it, and the device says that another lists it too."""
    pool.report((A,), host="h1", by=by(ONE))
    assert said(pool.report((A, B), host="h2", by=by(OTHER))) == [
        "REPORTED", "", f"gpu-a|h1|{ONE}",
    ]  # fmt: skip
    assert (pool.hash("device:gpu-a")["host"], pool.hash("device:gpu-a")["rival"]) == ("h1", "h2")
    assert pool.hash("device:gpu-b")["host"] == "h2"
    pool.report((A,), host="h2", by=by(OTHER))
    assert pool.events().count("device_contested") == 1
    assert said(pool.report((A,), host="h2", by=by(OTHER, ONE))) == ["REPORTED"], "h1's is over"
    assert pool.hash("device:gpu-a")["host"] == "h2"


@pytest.mark.parametrize("how", ["lost", "silent", "says nothing of itself"])
def test_device_moves_from_a_host_that_has_it_no_more(pool: Pool, how: str) -> None:
    """At once where its host has said so; else at that one's deadline."""
    who = None if how == "says nothing of itself" else by(ONE)
    state = "lost" if how == "lost" else "ok"
    pool.report((device("gpu-a", state=state),), host="h1", deadline_ms=1000, by=who)
    if how == "silent":
        pool.skew(1100)
    assert said(pool.report((A,), host="h2", by=by(OTHER))) == ["REPORTED"]
    assert pool.hash("device:gpu-a")["host"] == "h2"


@pytest.mark.parametrize(
    ("asked", "near"),
    [("GPU-A", "gpu-a"), ("gpu-a.example.com", "gpu-a"), ("gpu-b", "Gpu-B.example"),
     ("gpu-c", ""), ("bare", "")],
)  # fmt: skip
def test_refusal_of_an_unknown_host_names_the_one_that_is_called_nearly_so(
    pool: Pool, asked: str, near: str
) -> None:
    """By case and domain; none without devices."""
    pool.report((A,), host="gpu-a")
    pool.report((B,), host="Gpu-B.example")
    pool.report((), host="BARE")
    assert said(pool.acquire(host=asked)) == ["REFUSED", "host_unknown", near]
    assert said(pool.drain(asked, "host")) == ["REFUSED", "host_unknown", near]
