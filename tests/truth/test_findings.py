"""What is found, when it begins and ends, and what the policy makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.holders import Ended
from broker.devices.sample import GpuProcess
from broker.truth.reckoning import Revocation
from tests.truth.worlds import Host, gpu, holders, lease, program

if TYPE_CHECKING:
    from broker.truth.reckoning import Reckoning

P = GpuProcess
A, B = "a" * 16, "b" * 16


def found(reckoning: Reckoning, kind: str) -> str:
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
    assert said["outside_mb"] == "50", "its memory is not free for all that"


@pytest.mark.parametrize("name", ["Xorg", "nvidia-cuda-mps", "nvidia-persiste"])
def test_squatter_is_no_service_of_the_machine(name: str) -> None:
    """Who serves everybody needs no lease; its memory counts."""
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
    [(0.0, 90.0, True), (5.0, 0.0, False), (None, 0.0, True), (None, 7.0, False),
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


def orphaned(host: Host, outcome: str, grace_s: float = 6) -> Reckoning:
    """A lease's process goes on after its end; two looks later."""
    host.look((gpu(P(10, 500)),), holders(lease(A, 1000, 10)), (program(10),))
    over = holders(ended={A: Ended(outcome, host.now_ms + 1)})
    host.look((gpu(P(10, 500)),), over, (program(10),), after_s=grace_s)
    return host.look((gpu(P(10, 500)),), over, (program(10),))


@pytest.mark.parametrize("outcome", ["released", "expired", "revoked"])
def test_orphan_is_a_process_whose_lease_is_over(outcome: str) -> None:
    """However it ended; its memory is outside now."""
    reckoning = orphaned(Host(), outcome)
    assert found(reckoning, "orphan") == "10"
    assert found(reckoning, "outside_mb") == "500"


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
    """Until then its holder may still let go, and the ledger withholds what it held."""
    (said,) = orphaned(Host(expiry_grace_s=60), "expired").reports.values()
    assert (said["state"], said["orphan"]) == ("ok", "10")


def test_orphan_is_nobody_whose_holder_has_another_lease_there() -> None:
    """It works under that one now."""
    host = Host()
    held = holders(lease(A, 1000, 10), lease(B, 1000, 10))
    host.look((gpu(P(10, 500)),), held, (program(10),))
    over = holders(lease(B, 1000, 10), ended={A: Ended("expired", host.now_ms + 1)})
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


def test_nobody_is_condemned_on_a_full_gpu_whose_leases_keep_to_what_they_hold() -> None:
    """Somebody without a lease has filled it: that is another policy's."""
    host, held = Host(kill_on_oom=True), holders(lease(A, 4000, 10))
    programs = (program(10), program(30))
    assert host.look((gpu(P(10, 4000), P(30, 5900)),), held, programs).end == []


def test_rows_tell_each_process_with_its_lease_and_since_when() -> None:
    """What the doors show beside the leases, largest first."""
    host, held = Host(), holders(lease(A, 1000, 10))
    programs = (program(10), program(20))
    for _ in range(2):
        (said,) = host.look((gpu(P(10, 50), P(20, 900)),), held, programs).reports.values()
    at = host.now_ms - 5000
    assert said["processes"] == (
        f'[{{"pid":20,"memory_mb":900,"name":"python3","user":"user","token":"",'
        f'"finding":"squatter","since_ms":{at},"busy_pct":null}},'
        f'{{"pid":10,"memory_mb":50,"name":"python3","user":"user","token":"{A}",'
        f'"finding":"","since_ms":{at},"busy_pct":null}}]'
    )
