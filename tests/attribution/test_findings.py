"""Findings: their beginning and end, and the acts that the policy makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state.tombstones import EndedLease
from broker.attribution.consequences import Revocation
from broker.devices.sample import GpuProcess
from tests.attribution.worlds import Host, device_status, gpu, holders, lease, program

if TYPE_CHECKING:
    from broker.attribution.report import HostReport

P = GpuProcess
A, B = "a" * 16, "b" * 16


def found(reckoning: HostReport, kind: str) -> str:
    """The subjects of a kind on the one device that was looked at."""
    (said,) = reckoning.reports.values()
    return said[kind]


def test_squatter_is_a_process_without_a_lease_that_stays() -> None:
    """Seen in two samples, so that nobody who is about to go is called one."""
    host, programs = Host(), (program(20),)
    assert found(host.look((gpu(P(20, 50)),), None, programs), "squatter") == ""
    assert found(host.look((gpu(P(20, 50)),), None, programs), "squatter") == "20"
    assert found(host.look((gpu(),), None), "squatter") == ""


def test_squatter_is_nobody_while_a_lease_has_unknown_processes() -> None:
    """It may be that lease's own: through HTTP nobody registers a process."""
    host, held = Host(), holders(lease(A, 100, None))
    for _ in range(3):
        assert found(host.look((gpu(P(20, 50)),), held, (program(20),)), "squatter") == ""


def test_squatter_is_nobody_that_vanished_between_the_list_and_proc() -> None:
    """vanished pid: the driver still names it, the system knows no such process."""
    host = Host()
    for _ in range(3):
        reckoning = host.look((gpu(P(20, 50)),), None, ())
        assert found(reckoning, "squatter") == ""
    (said,) = reckoning.reports.values()
    assert (said["used_mb"], said["reported_unleased_mb"]) == ("50", ""), "by what is used"


@pytest.mark.parametrize("name", ["Xorg", "nvidia-cuda-mps", "nvidia-persiste"])
def test_squatter_is_no_service_of_the_machine(name: str) -> None:
    """A service for every user needs no lease; its memory counts."""
    host = Host()
    for _ in range(3):
        reckoning = host.look((gpu(P(20, 50)),), None, (program(20, name=name),))
        assert found(reckoning, "squatter") == ""


def test_squatter_may_hold_a_lease_elsewhere() -> None:
    """Whoever leased one GPU and uses another is there without a lease."""
    host, held = Host(), holders(lease(A, 100, 20, uuid="GPU-b"))
    for _ in range(2):
        reckoning = host.look((gpu(P(20, 50)),), held, (program(20),))
    assert found(reckoning, "squatter") == "20"


def test_overuse_is_what_a_lease_s_processes_use_beyond_it() -> None:
    """More than the slack, at once; it ends when they give it back."""
    host, held = Host(), holders(lease(A, 1000, 10))
    for mb, said in ((1100, ""), (1101, A), (900, "")):
        assert found(host.look((gpu(P(10, mb)),), held, (program(10),)), "overuse") == said


def test_idle_is_a_lease_that_no_process_uses_for_long_enough() -> None:
    """idle_after_s from the first sample without use; one with use begins anew."""
    host, held = Host("10:10", idle_after_s=20), holders(lease(A, 1000, 10))
    assert [found(host.look((gpu(),), held), "idle") for _ in range(5)] == ["", "", "", "", A]
    busy = (gpu(P(10, 5, 30.0)),)
    assert found(host.look(busy, held, (program(10),)), "idle") == ""
    assert found(host.look((gpu(),), held), "idle") == ""


@pytest.mark.parametrize(
    ("busy", "of_gpu", "idle"),
    [(0.0, 0.0, True), (0.0, 90.0, False), (5.0, 0.0, False), (None, 0.0, True), (None, 7.0, False),
     (None, None, False)],
)  # fmt: skip
def test_idle_is_a_process_that_does_nothing(
    busy: float | None, of_gpu: float | None, idle: bool
) -> None:
    """By its own use, else by its GPU's; unknown is not idle."""
    host, held = Host(idle_after_s=10), holders(lease(A, 1000, 10))
    device = gpu(P(10, 500, busy), utilization_gpu_pct=of_gpu)
    for _ in range(3):
        reckoning = host.look((device,), held, (program(10),))
    assert found(reckoning, "idle") == (A if idle else "")


def test_idle_is_a_process_that_does_nothing_beside_one_that_works() -> None:
    """The driver tells them apart there."""
    host = Host(idle_after_s=10)
    held = holders(lease(A, 1000, 10), lease(B, 1000, 20))
    device = gpu(P(10, 500, 0.0), P(20, 500, 90.0), utilization_gpu_pct=90.0)
    for _ in range(3):
        reckoning = host.look((device,), held, (program(10), program(20)))
    assert found(reckoning, "idle") == A


def test_idle_is_no_lease_one_of_whose_gpus_is_used() -> None:
    """A lease is one thing, and is found on its first GPU alone."""
    both = lease(A, 1000, 10, devices="GPU-a=1000,GPU-b=1000")
    host, held = Host(idle_after_s=10), holders(both)
    used = (gpu(), gpu(P(10, 500, 40.0), uuid="GPU-b"))
    for _ in range(4):
        host.look(used, held, (program(10),))
    for _ in range(4):
        reports = host.look((gpu(), gpu(uuid="GPU-b")), held).reports
    assert (reports["GPU-a"]["idle"], reports["GPU-b"]["idle"]) == (A, "")


def test_idle_is_no_lease_with_unknown_processes_while_somebody_works_there() -> None:
    """It may be its own; with nobody there at all it is idle."""
    host, held = Host(idle_after_s=10), holders(lease(A, 1000, None))
    for _ in range(4):
        reckoning = host.look((gpu(P(20, 500, 40.0)),), held, (program(20),))
    assert found(reckoning, "idle") == ""
    for _ in range(4):
        reckoning = host.look((gpu(),), held)
    assert found(reckoning, "idle") == A


def orphaned(host: Host, outcome: str, grace_s: float = 6) -> HostReport:
    """A lease's process goes on after its end; two looks later."""
    host.look((gpu(P(10, 500)),), holders(lease(A, 1000, 10)), (program(10),))
    over = holders(ended={A: EndedLease(outcome, host.now_ms + 1)})
    host.look((gpu(P(10, 500)),), over, (program(10),), after_s=grace_s)
    return host.look((gpu(P(10, 500)),), over, (program(10),))


@pytest.mark.parametrize("outcome", ["released", "expired", "revoked"])
def test_orphan_is_a_process_whose_lease_is_over(outcome: str) -> None:
    """However it ended; its memory is unleased now."""
    reckoning = orphaned(Host(), outcome)
    assert found(reckoning, "orphan") == "10"
    assert found(reckoning, "reported_unleased_mb") == "500"


@pytest.mark.parametrize(
    ("outcome", "state"), [("released", "ok"), ("expired", "dirty"), ("revoked", "dirty")]
)
def test_device_is_dirty_whose_dead_holder_never_lets_go(outcome: str, state: str) -> None:
    """After its grace, when it ended without its word; who released may go on with its memory."""
    (said,) = orphaned(Host(), outcome).reports.values()
    assert said["state"] == state
    assert ("still holds 500 MiB" in said["reason"]) == (state == "dirty")


def test_device_is_dirty_no_more_when_the_process_is_gone() -> None:
    """By itself, at the next look."""
    host = Host()
    orphaned(host, "expired")
    (said,) = host.look((gpu(),), holders()).reports.values()
    assert (said["state"], said["orphan"]) == ("ok", "")


def test_device_is_not_dirty_within_the_grace() -> None:
    """Its holder may still let go, and the ledger withholds what the lease held."""
    (said,) = orphaned(Host(expiry_grace_s=60), "expired").reports.values()
    assert (said["state"], said["orphan"]) == ("ok", "10")


def test_orphan_is_nobody_whose_holder_has_another_lease_there() -> None:
    """It works under that one now."""
    host = Host()
    held = holders(lease(A, 1000, 10), lease(B, 1000, 10))
    host.look((gpu(P(10, 500)),), held, (program(10),))
    over = holders(lease(B, 1000, 10), ended={A: EndedLease("expired", host.now_ms + 1)})
    for _ in range(2):
        reckoning = host.look((gpu(P(10, 500)),), over, (program(10),))
    assert found(reckoning, "orphan") == found(reckoning, "squatter") == ""


@pytest.mark.parametrize("state", ["lost", "error", "ok"])
def test_degraded_is_a_lease_on_a_device_that_failed(state: Any) -> None:
    """Its holder is told, whatever the policy says of other findings."""
    held = holders(lease(A, 1000, 10))
    (said,) = Host().look((gpu(state=state),), held).reports.values()
    assert said["degraded"] == (A if state == "lost" else "")
    assert said.get("tell") == (f"{A}=degraded" if state == "lost" else None)


@pytest.mark.parametrize(
    ("action", "tell"), [("observe", None), ("notify", f"{A}=overuse"), ("enforce", f"{A}=overuse")]
)
def test_holder_is_told_as_the_policy_says(action: str, tell: str | None) -> None:
    """observe: it is shown. notify, enforce: the holder hears of it, once, and of its end."""
    host, held = Host(overuse_action=action), holders(lease(A, 1000, 10))
    (said,) = host.look((gpu(P(10, 5000)),), held, (program(10),)).reports.values()
    assert said.get("tell") == tell
    knows = holders(lease(A, 1000, 10, notice="overuse"))
    (said,) = host.look((gpu(P(10, 5000)),), knows, (program(10),)).reports.values()
    assert ("tell" in said) == (action == "observe")
    (said,) = host.look((gpu(P(10, 100)),), knows, (program(10),)).reports.values()
    assert said["tell"] == f"{A}="


@pytest.mark.parametrize("action", ["observe", "notify", "enforce"])
def test_lease_is_revoked_only_when_the_policy_says_so(action: str) -> None:
    """After enforce_after_s more, so that a holder who was told can do something."""
    host, held = Host(overuse_action=action, enforce_after_s=10), holders(lease(A, 1000, 10))
    acts = [host.look((gpu(P(10, 5000)),), held, (program(10),)).revoke for _ in range(4)]
    ended = [Revocation(A, "its processes use more than it holds")]
    assert acts == [[], [], ended, ended] if action == "enforce" else not any(acts)


@pytest.mark.parametrize("action", ["observe", "notify", "enforce"])
def test_squatter_is_condemned_only_when_the_policy_says_so(action: str) -> None:
    """After enforce_after_s more; and then it still takes a reporter that may."""
    host = Host(squatter_action=action, enforce_after_s=5)
    acts = [host.look((gpu(P(20, 50)),), None, (program(20),)).end for _ in range(4)]
    pids = [[each.program.pid for each in act] for act in acts]
    assert pids == ([[], [], [20], [20]] if action == "enforce" else [[], [], [], []])


@pytest.mark.parametrize("kill_on_oom", [True, False])
def test_over_using_process_is_condemned_when_its_gpu_is_nearly_out_of_memory(
    kill_on_oom: bool,
) -> None:
    """The largest of the lease that uses most beyond what it holds, before its neighbours die."""
    host = Host(kill_on_oom=kill_on_oom)
    held = holders(lease(A, 4000, 10), lease(B, 1000, 20))
    programs = (program(10), program(20), program(21, 20), program(22, 20))
    full = gpu(P(10, 4100), P(20, 500), P(21, 4000), P(22, 1200))
    condemned = host.look((full,), held, programs).end
    assert [(each.program.pid, each.token) for each in condemned] == [(21, B)] * kill_on_oom
    roomy = gpu(P(10, 4100), P(20, 500), P(21, 4000), P(22, 1000))
    assert host.look((roomy,), held, programs).end == []


def test_nobody_is_condemned_who_belongs_to_a_lease_by_a_callers_word_alone() -> None:
    """Neither as an over-user nor as an orphan; it is told all the same."""
    host = Host(shown=None, kill_on_oom=True, orphan_action="enforce", enforce_after_s=0)
    held, full = holders(lease(A, 10, 10)), (gpu(P(10, 9900)),)
    assert [host.look(full, held, (program(10),)).end for _ in range(3)] == [[]] * 3
    over = holders(ended={A: EndedLease("expired", 5)})
    for _ in range(3):
        reckoning = host.look(full, over, (program(10),))
        assert reckoning.end == []
    assert reckoning.reports["GPU-a"]["orphan"] == "10"


def test_nobody_is_condemned_that_belongs_to_a_second_lease_that_lives() -> None:
    """Over-using one does not end what another has: its ancestor is under B."""
    host, held = Host(kill_on_oom=True), holders(lease(A, 10, 10), lease(B, 10, None))
    programs = (program(10, 9, inherited=B),)
    assert host.look((gpu(P(10, 9900)),), held, programs).end == []


def test_orphan_that_a_reporter_before_us_knew_is_told_and_not_ended() -> None:
    """Any client with the pool's credentials may have written what stands there."""
    host, anew = Host(), Host(orphan_action="enforce", enforce_after_s=0)
    first = orphaned(host, "expired").reports["GPU-a"]
    known = device_status(processes=first["processes"])
    over = holders(devices=(known,), ended={A: EndedLease("expired", 5)})
    anew.now_ms = host.now_ms
    for _ in range(3):
        reckoning = anew.look((gpu(P(10, 500)),), over, (program(10),))
        assert (reckoning.reports["GPU-a"]["orphan"], reckoning.end) == ("10", [])


def test_nobody_is_condemned_on_a_full_gpu_whose_leases_keep_to_what_they_hold() -> None:
    """Somebody without a lease has filled it: that is another policy's."""
    host, held = Host(kill_on_oom=True), holders(lease(A, 4000, 10))
    programs = (program(10), program(30))
    assert host.look((gpu(P(10, 4000), P(30, 5900)),), held, programs).end == []


def test_rows_tell_each_process_with_its_lease_and_since_when() -> None:
    """Every interface shows them beside the leases, largest first."""
    host, held = Host(), holders(lease(A, 1000, 10))
    programs = (program(10), program(20))
    for _ in range(2):
        (said,) = host.look((gpu(P(10, 50), P(20, 900)),), held, programs).reports.values()
    at = host.now_ms - 5000
    assert said["processes"] == (
        f'[{{"pid":20,"memory_mb":900,"name":"python3","user":"user","token":"",'
        f'"finding":"squatter","since_ms":{at},"busy_pct":null,"start":20}},'
        f'{{"pid":10,"memory_mb":50,"name":"python3","user":"user","token":"{A}",'
        f'"finding":"","since_ms":{at},"busy_pct":null,"start":10}}]'
    )


def test_squatter_is_nobody_beside_a_lease_whose_processes_have_yet_to_be_seen() -> None:
    """A container that the holder started is not its descendant: it may be that."""
    host, held = Host("10:10"), holders(lease(A, 4000, 10))
    for _ in range(3):
        reckoning = host.look((gpu(P(20, 700)),), held, (program(20, 1),))
    assert found(reckoning, "squatter") == ""
    assert found(reckoning, "reported_unleased_mb") == "700", "its memory is counted all the same"
    for _ in range(2):
        reckoning = host.look((gpu(P(10, 5), P(20, 700)),), held, (program(10), program(20, 1)))
    assert found(reckoning, "squatter") == "20"


def test_process_with_a_lease_of_its_own_and_an_older_token_is_no_orphan() -> None:
    """It was started under a lease that is over, and holds another: it works under that."""
    host = Host()
    held = holders(lease(B, 5000, 10), ended={A: EndedLease("expired", 5)})
    for _ in range(3):
        reckoning = host.look((gpu(P(10, 4000)),), held, (program(10, token=A),))
    assert [found(reckoning, kind) for kind in ("orphan", "squatter", "reported_unleased_mb")] == [
        "",
        "",
        "0",
    ]


def test_process_with_a_lease_of_its_own_and_a_token_of_another_gpu_is_no_squatter() -> None:
    """The script of `gpu-broker run` takes a second lease."""
    host = Host()
    held = holders(lease(A, 5000, 1, uuid="GPU-b"), lease(B, 5000, 10))
    for _ in range(3):
        reckoning = host.look((gpu(P(10, 4000)),), held, (program(10, token=A),))
    assert [found(reckoning, kind) for kind in ("squatter", "reported_unleased_mb")] == ["", "0"]


@pytest.mark.parametrize("elsewhere", [frozenset({A}), frozenset()])
def test_token_that_lives_elsewhere_or_was_never_heard_of_makes_no_orphan(
    elsewhere: frozenset[str],
) -> None:
    """A CPU lease, another host's, or a made-up word: without a lease here, no more than that."""
    host, held = Host(), holders(elsewhere=elsewhere)
    for _ in range(3):
        reckoning = host.look((gpu(P(10, 400)),), held, (program(10, token=A),))
    assert (found(reckoning, "orphan"), found(reckoning, "squatter")) == ("", "10")


def test_lease_released_between_the_sample_and_the_reading_makes_nothing_of_its_process() -> None:
    """It was there rightly when it was seen."""
    host, held = Host(), holders(lease(A, 1000, 10))
    for _ in range(2):
        host.look((gpu(P(10, 500)),), held, (program(10),))
    over = holders(ended={A: EndedLease("released", host.now_ms + 9000)})
    reckoning = host.look((gpu(P(10, 500)),), over, (program(10),))
    assert (found(reckoning, "orphan"), found(reckoning, "squatter")) == ("", "")


def test_nothing_is_found_of_processes_while_forgotten_leases_may_come_back() -> None:
    """After data loss, and a minute beyond: whose lease is forgotten brings it with a renewal."""
    host = Host(orphan_action="enforce", squatter_action="enforce", enforce_after_s=0)
    host.look((gpu(P(10, 500)),), holders(lease(A, 1000, 10)), (program(10),))
    host.pool = replace(host.pool, closed_until_ms=host.now_ms + 10_000)
    for _ in range(13):
        reckoning = host.look((gpu(P(10, 500)),), holders(), (program(10),))
        assert (found(reckoning, "orphan"), found(reckoning, "squatter")) == ("", "")
        assert reckoning.end == []
    host.look((gpu(P(10, 500)),), holders(), (program(10),))
    assert found(host.look((gpu(P(10, 500)),), holders(), (program(10),)), "orphan") == "10"


def test_whole_lease_may_use_what_is_reserved_of_its_gpu() -> None:
    """Nobody else is there: it is not over-used, and nobody is ended for it."""
    known = device_status(exclusive=A)
    host = Host(overuse_action="enforce", enforce_after_s=0, kill_on_oom=True)
    held = holders(lease(A, 9700, 10), devices=(known,))
    for _ in range(3):
        reckoning = host.look((gpu(P(10, 9950)),), held, (program(10),))
    assert found(reckoning, "overuse") == ""
    assert (reckoning.end, reckoning.revoke) == ([], [])


def test_nobody_is_condemned_for_a_little_more_than_its_lease() -> None:
    """Within the slack it is not over-use, however full somebody else makes the GPU."""
    host, held = Host(kill_on_oom=True), holders(lease(A, 1000, 10))
    programs = (program(10), program(30))
    assert host.look((gpu(P(10, 1001), P(30, 8800)),), held, programs).end == []


def test_service_of_the_machine_that_outlives_who_started_it_is_no_orphan() -> None:
    """Ending an MPS server would end all who work through it."""
    host = Host()
    mps = program(11, 10, name="nvidia-cuda-mps")
    host.look((gpu(P(11, 30)),), holders(lease(A, 1000, 10)), (mps,))
    over = holders(ended={A: EndedLease("expired", 5)})
    for _ in range(2):
        reckoning = host.look((gpu(P(11, 30)),), over, (mps,), after_s=60)
    (said,) = reckoning.reports.values()
    assert (said["orphan"], said["state"]) == ("", "ok")


def test_look_that_misses_the_processes_forgets_nobody() -> None:
    """The driver hangs once: afterwards it is still known whose each was."""
    host = Host()
    orphaned(host, "expired")
    over = holders(ended={A: EndedLease("expired", 5)})
    host.look((gpu(processes=None, state="error"),), over)
    (said,) = host.look((gpu(P(10, 500)),), over, (program(10),)).reports.values()
    (said,) = host.look((gpu(P(10, 500)),), over, (program(10),)).reports.values()
    assert (said["state"], said["orphan"]) == ("dirty", "10")


def test_reporter_that_starts_anew_knows_whose_processes_were() -> None:
    """From what the pool was told last: a dirty GPU is dirty at the first look."""
    host, anew = Host(), Host()
    first = orphaned(host, "expired").reports["GPU-a"]
    known = device_status(processes=first["processes"])
    over = holders(devices=(known,), ended={A: EndedLease("expired", 5)})
    anew.now_ms = host.now_ms
    (said,) = anew.look((gpu(P(10, 500)),), over, (program(10),)).reports.values()
    assert (said["state"], said["orphan"]) == ("dirty", "10")


def test_second_reporter_of_a_host_leaves_finding_to_the_first() -> None:
    """Two would contradict each other; it takes over when the first is silent."""
    host = Host()
    for finder_ms, finds in ((host.now_ms, False), (host.now_ms - 30_000, True)):
        known = device_status(finder="another", finder_ms=finder_ms)
        for _ in range(2):
            reckoning = host.look(
                (gpu(P(20, 50)),), holders(devices=(known,)), (program(20),), after_s=0.5
            )
        (said,) = reckoning.reports.values()
        assert ("squatter" in said, "finder" in said) == (finds, finds)
        assert said["processes"] != ""


def test_findings_end_with_the_device() -> None:
    """Nothing is found on a GPU that is lost: what was is over."""
    host = Host()
    for _ in range(2):
        reckoning = host.look((gpu(P(20, 50)),), None, (program(20),))
    assert found(reckoning, "squatter") == "20"
    lost = host.look((gpu(processes=None, state="lost"),), holders(lease(A, 10, 10)))
    assert [found(lost, kind) for kind in ("squatter", "idle", "degraded")] == ["", "", A]


def test_lease_that_is_revoked_already_is_not_revoked_again() -> None:
    """One act, one event, and the operator's reason stands."""
    host = Host(overuse_action="enforce", enforce_after_s=0)
    held = holders(lease(A, 1000, 10, revoked="operator"))
    for _ in range(3):
        assert host.look((gpu(P(10, 5000)),), held, (program(10),)).revoke == []
