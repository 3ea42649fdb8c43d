"""Processes that a driver does not name: in doubt they are unknown, and no lease is accused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.attribution.visibility import BUSY, MORE, STRANGE, UNTOLD
from broker.devices.sample import NAMELESS, NOT_TOLD, GpuProcess
from tests.attribution.worlds import Host, gpu, holders, lease, program

P = GpuProcess
A = "a" * 16
NO_ROW: dict[str, Any] = {"processes": (), "used_mb": 0}


def told(host: Host, *looks: dict[str, Any]) -> dict[str, str]:
    """The report of the last of several looks at a GPU whose only lease has lived for long."""
    held, said = holders(lease(A, 5000, 10)), {}
    for fields in looks:
        rows = fields.pop("processes", ())
        look = host.look((gpu(*rows, **fields),), held, (program(10), program(20)))
        (said,) = look.reports.values()
    return said


@pytest.mark.parametrize(
    ("fields", "unseen"),
    [
        ({"utilization_gpu_pct": 97.0, "used_mb": 9200}, BUSY),
        ({"utilization_gpu_pct": 1.0, "used_mb": 0}, BUSY),
        ({"utilization_gpu_pct": 0.0, "used_mb": 513}, MORE),
        ({"utilization_gpu_pct": 0.0, "used_mb": 512}, ""),
        ({"utilization_gpu_pct": 0.0, "used_mb": None}, UNTOLD),
        ({"utilization_gpu_pct": None, "used_mb": None}, UNTOLD),
        ({"utilization_gpu_pct": None, "used_mb": 65}, UNTOLD),
        ({"utilization_gpu_pct": None, "used_mb": 64}, ""),
        ({"utilization_gpu_pct": 0.0, "used_mb": 6000, "unified": True}, ""),
        ({"utilization_gpu_pct": None, "used_mb": 60, "unified": True}, UNTOLD),
        ({"utilization_gpu_pct": 9.0, "used_mb": 60, "unified": True}, BUSY),
    ],
)
def test_empty_list_is_believed_on_a_quiet_gpu_alone(fields: dict[str, Any], unseen: str) -> None:
    """Use or memory that no process explains make the processes unknown, and no lease idle."""
    looks = [fields | {"processes": ()} for _ in range(4)]
    said = told(Host("10:10", idle_after_s=10), *looks)
    assert (said["processes"], said["unseen"]) == ("" if unseen else "[]", unseen)
    assert said["idle"] == ("" if unseen else A)
    assert (said["reported_unleased_mb"] == "") == bool(unseen), "the ledger goes by what is used"


@pytest.mark.parametrize("unseen", [NAMELESS, "the list is cut off"])
def test_list_that_lacks_some_accuses_no_process_and_no_lease(unseen: str) -> None:
    """The named ones are shown, with the reason; what is missing may be the lease's own."""
    looks = [{"processes": (P(20, 500, 0.0),), "unseen": unseen} for _ in range(4)]
    said = told(Host("10:10", idle_after_s=10), *looks)
    assert [row["pid"] for row in json.loads(said["processes"])] == [20]
    assert (said["unseen"], said["idle"], said["squatter"]) == (unseen, "", "")
    assert said["reported_unleased_mb"] == ""


def test_memory_that_no_process_has_makes_the_list_incomplete() -> None:
    """A lease's workers in a container are not listed, another process is: it may be theirs."""
    rows = (P(20, 500, 0.0),)
    enough = told(Host("10:10", idle_after_s=10), *({"processes": rows, "used_mb": 1012},) * 1)
    assert enough["unseen"] == ""
    looks = [{"processes": rows, "used_mb": 1013} for _ in range(4)]
    said = told(Host("10:10", idle_after_s=10), *looks)
    assert (said["unseen"], said["idle"], said["squatter"]) == (MORE, "", "")


def test_memory_beyond_is_unknown_where_one_process_does_not_tell_its_own() -> None:
    """Its part may be all of the rest."""
    said = told(Host("10:10"), {"processes": (P(20, None, 0.0),), "used_mb": 9000})
    assert said["unseen"] == ""


def test_process_of_another_system_may_be_the_lease_s_own() -> None:
    """Pids of no process here, as of the system that WSL runs in: at two looks, not at one."""
    row = {"processes": (P(77, 900, 80.0),), "utilization_gpu_pct": 80.0}
    host = Host("10:10", idle_after_s=10)
    assert told(host, dict(row))["unseen"] == "", "it may have ended meanwhile"
    said = told(host, *(dict(row) for _ in range(4)))
    assert (said["unseen"], said["idle"], said["squatter"]) == (STRANGE, "", "")
    assert [row["pid"] for row in json.loads(said["processes"])] == [77]


def test_policy_says_how_much_a_desktop_may_use_unnamed() -> None:
    """idle_foreign_mb: what nvidia-smi does not list of a desktop is no sign of hidden work."""
    fields = {"processes": (), "used_mb": 1331, "utilization_gpu_pct": 0.0}
    assert told(Host("10:10"), dict(fields))["unseen"] == MORE
    allows = Host("10:10", idle_foreign_mb=2048, idle_after_s=10)
    said = told(allows, *(dict(fields) for _ in range(4)))
    assert (said["unseen"], said["idle"]) == ("", ""), "a lease's work may be among it"
    assert told(Host("10:10", idle_foreign_mb=2048), dict(fields))["idle_unleased_mb"] == "2048"


def test_idle_ends_when_its_gpu_works_unseen() -> None:
    """A finding of before does not outlive the look that casts doubt on it by two."""
    host = Host("10:10", idle_after_s=10)
    assert told(host, *({"processes": ()} for _ in range(4)))["idle"] == A
    busy = {"utilization_gpu_pct": 80.0}
    assert told(host, busy | {"processes": ()}, busy | {"processes": ()})["idle"] == ""


def test_idle_begins_anew_after_doubt() -> None:
    """Time that was not seen is no time without work."""
    host, quiet = Host("10:10", idle_after_s=20), {"processes": ()}
    busy = quiet | {"utilization_gpu_pct": 80.0}
    for looks, idle in ((4, ""), (1, A)):
        assert told(host, *(dict(quiet) for _ in range(looks)))["idle"] == idle
    told(host, busy)
    assert told(host, *(dict(quiet) for _ in range(4)))["idle"] == ""


@pytest.mark.parametrize(
    ("busy", "idle"), [(0.0, ""), (None, A), (60.0, A)], ids=["none of them", "untold", "one"]
)
def test_idle_is_no_lease_while_its_gpu_is_busy_by_no_named_process(
    busy: float | None, idle: str
) -> None:
    """A small process beside it is listed and does nothing: the work may be the lease's own."""
    fields = {"processes": (P(20, 100, busy),), "utilization_gpu_pct": 60.0}
    assert told(Host("10:10", idle_after_s=10), *(dict(fields) for _ in range(4)))["idle"] == idle


def test_idle_is_no_client_of_mps_while_its_gpu_works() -> None:
    """The driver may count a client's work as the server's."""
    held = holders(lease(A, 5000, 10))
    rows = (P(10, 500, 0.0), P(20, 30, 90.0))
    for mps, idle in ((True, ""), (False, A)):
        host = Host("10:10", idle_after_s=10)
        device = gpu(*rows, utilization_gpu_pct=90.0, mps=mps)
        for _ in range(4):
            (said,) = host.look((device,), held, (program(10), program(20))).reports.values()
        assert said["idle"] == idle


def test_overuse_is_not_said_for_ever_where_it_can_be_told_no_more() -> None:
    """The second look in doubt ends it, as it ends other findings; the first says nothing."""
    host, held = Host("10:10"), holders(lease(A, 1000, 10))

    def overuse(**more: Any) -> str | None:
        (said,) = host.look((gpu(P(10, 1500), **more),), held, (program(10),)).reports.values()
        return said.get("overuse")

    assert overuse() == A
    assert [overuse(used_mb=9000), overuse(used_mb=9000)] == [None, ""]
    assert overuse() == A


def test_processes_that_a_driver_does_not_tell_have_a_reason() -> None:
    """Processes that are not told may be there; a source may know better why."""
    (said,) = Host().look((gpu(processes=None, used_mb=10),)).reports.values()
    assert (said["processes"], said["unseen"]) == ("", NOT_TOLD.format("its driver"))
    (said,) = Host().look((gpu(processes=None, unseen="it hangs"),)).reports.values()
    assert said["unseen"] == "it hangs"
    (said,) = Host().look((gpu(processes=None, simulated=True),)).reports.values()
    assert said["unseen"] == "", "a simulated GPU has none"


def test_host_that_sees_no_process_says_so_of_an_empty_list_too() -> None:
    """In a container of its own, or told not to look, it knows nothing of an idle GPU either."""
    for _ in range(4):
        said = Host("10:10", idle_after_s=10).look((gpu(),), holders(lease(A, 1, 10)), unseen="no")
    (row,) = said.reports.values()
    assert (row["processes"], row["unseen"]) == ("", "no")
    assert row.get("idle", "") == ""


def test_graphics_are_neither_squatters_nor_orphans() -> None:
    """A browser's window computes nothing; the same program that computes is a squatter."""
    host = Host()
    for _ in range(3):
        rows = (P(10, 100, draws=True, computes=False), P(20, 100))
        reports = host.look((gpu(*rows),), None, (program(10, name="firefox"), program(20)))
    (said,) = reports.reports.values()
    assert said["squatter"] == "20"
    drawing = {row["pid"]: row.get("graphics_only", False) for row in json.loads(said["processes"])}
    assert drawing == {10: True, 20: False}
    # the window of an application that had a lease
    host = Host()
    held = holders(lease(A, 1000, 10))
    window = gpu(P(10, 100, draws=True, computes=False))
    host.look((window,), held, (program(10),))
    for _ in range(2):
        (said,) = host.look((window,), holders(), (program(10),), after_s=60).reports.values()
    assert (said["orphan"], said["state"]) == ("", "ok")


def test_graphics_explain_the_use_of_a_desktop() -> None:
    """A lease without a process is idle beside a desktop that the driver names."""
    rows = (P(20, 1331, draws=True, computes=False),)
    looks = [{"processes": rows, "utilization_gpu_pct": 3.0} for _ in range(4)]
    assert told(Host("10:10", idle_after_s=10), *looks)["idle"] == A


@pytest.mark.parametrize(("memory_mb", "found"), [(300, ""), (512, ""), (513, "20"), (None, "")])
def test_program_that_also_draws_may_be_the_desktop_s(memory_mb: int | None, found: str) -> None:
    """Terminals and panels compute a little: up to what others may use, none is a squatter."""
    host = Host()
    for _ in range(2):
        (said,) = host.look(
            (gpu(P(20, memory_mb, draws=True)),), None, (program(20),)
        ).reports.values()
    assert said["squatter"] == found
