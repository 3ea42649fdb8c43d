"""The formula's cases: free = capacity - Σ max(leased, used) - used by nobody's lease."""

from __future__ import annotations

from typing import Any

import pytest

from broker.attribution.terms import USE_UNTOLD
from broker.devices.sample import GpuProcess
from tests.attribution.worlds import Host, gpu, holders, lease, program

P = GpuProcess
A, B = "a" * 16, "b" * 16


def numbers(host: Host, *about: object, **more: object) -> tuple[str, str, str]:
    """Return one device's memory: unleased, unattributed, and used by leases that cool."""
    (said,) = host.look(*about, **more).reports.values()  # type: ignore[arg-type] # a look's own
    return said["reported_unleased_mb"], said["unattributed_mb"], said["cooling_used_mb"]


def test_account_of_an_idle_gpu_is_nothing() -> None:
    """Nobody uses it, nobody holds it."""
    assert numbers(Host(), (gpu(),)) == ("0", "0", "0")


def test_account_of_a_lease_that_uses_what_it_holds_is_nothing() -> None:
    """It is in the ledger already, used or not."""
    held = holders(lease(A, 4000, 10))
    for mb in (0, 3999, 4000):
        assert numbers(Host(), (gpu(P(10, mb)),), held, (program(10),)) == ("0", "0", "0")


def test_account_of_a_lease_that_uses_more_is_the_rest() -> None:
    """Beyond what it holds it is like anybody without a lease."""
    held = holders(lease(A, 4000, 10))
    said = numbers(
        Host(), (gpu(P(11, 3000), P(12, 1500)),), held, (program(11, 10), program(12, 10))
    )
    assert said == ("500", "0", "0")


def test_account_of_a_process_without_a_lease_is_all_of_it() -> None:
    """The unused part of another's lease covers none of it."""
    held = holders(lease(A, 4000, 10))
    said = numbers(Host("10:10"), (gpu(P(20, 700)),), held, (program(20, 1),))
    assert said == ("700", "0", "0")


def test_account_of_memory_that_no_process_owns_is_unleased() -> None:
    """Memory that the driver counts as used, and names no process for, is not free either."""
    held = holders(lease(A, 4000, 10))
    said = numbers(Host(), (gpu(P(10, 3000), used_mb=3400),), held, (program(10),))
    assert said == ("400", "0", "0")


def test_account_of_a_holder_of_two_leases_counts_them_together() -> None:
    """One process with two leases on a GPU may use both as it likes, and not more."""
    held = holders(lease(A, 1000, 10), lease(B, 2000, 10))
    assert numbers(Host(), (gpu(P(10, 2900)),), held, (program(10),)) == ("0", "0", "0")
    assert numbers(Host(), (gpu(P(10, 3100)),), held, (program(10),)) == ("100", "0", "0")


def test_account_of_a_child_with_a_token_of_its_own_joins_its_parent_s_leases() -> None:
    """The parent holds two, the child runs under one of them: nothing is counted twice."""
    held = holders(lease(A, 1000, 10), lease(B, 2000, 10))
    programs = (program(10), program(11, 10, token=A))
    assert numbers(Host(), (gpu(P(10, 1500), P(11, 1400)),), held, programs) == ("0", "0", "0")
    assert numbers(Host(), (gpu(P(10, 1500), P(11, 1600)),), held, programs) == ("100", "0", "0")


def test_account_of_a_lease_on_another_gpu_covers_nothing_here() -> None:
    """Whoever leased one GPU and uses another is there without a lease."""
    held = holders(lease(A, 4000, 10, uuid="GPU-b"))
    (said,) = Host().look((gpu(P(10, 500)),), held, (program(10),)).reports.values()
    assert said["reported_unleased_mb"] == "500"


def test_account_of_leases_whose_processes_are_not_known_says_how_much_that_is() -> None:
    """Through HTTP no process is registered: unleased memory may be of those leases."""
    held = holders(lease(A, 4000, None), lease(B, 1000, 10))
    said = numbers(Host("10:10"), (gpu(P(20, 700)),), held, (program(20),))
    assert said == ("700", "4000", "0")


def test_account_of_a_holder_that_is_not_found_here_is_unclaimed() -> None:
    """Its pid means nothing here until one of its processes shows up."""
    held = holders(lease(A, 4000, 10))
    host = Host()
    assert numbers(host, (gpu(),), held) == ("0", "4000", "0")
    assert numbers(host, (gpu(P(10, 5)),), held, (program(10),)) == ("0", "0", "0")
    assert numbers(host, (gpu(),), held) == ("0", "0", "0"), "it has been found once"


def test_account_of_a_lease_granted_after_the_sample_has_used_nothing_of_it() -> None:
    """Memory in use before its grant is not its own."""
    held = holders(lease(A, 4000, None, granted_at_ms=2_000_000))
    assert numbers(Host(), (gpu(P(20, 700)),), held, (program(20),)) == ("700", "0", "0")


def test_account_of_a_lease_that_cools_says_what_lingers() -> None:
    """Its memory is withheld by the ledger, so it is not unleased; what is more of it is."""
    host = Host()
    numbers(host, (gpu(P(10, 900)),), holders(lease(A, 1000, 10)), (program(10),))
    cools = holders(lease(A, 1000, 10, state="cooling"))
    assert numbers(host, (gpu(P(10, 900)),), cools, (program(10),)) == ("0", "0", "900")
    assert numbers(host, (gpu(P(10, 1200)),), cools, (program(10),)) == ("200", "0", "1000")
    assert numbers(host, (gpu(),), cools) == ("0", "0", "0")


def test_account_of_a_cooling_lease_whose_holder_has_another_lingers_beyond_that() -> None:
    """Memory that the living lease covers is not kept back for the dead one."""
    host = Host()
    held = holders(lease(A, 1000, 10, state="cooling"), lease(B, 2000, 10))
    assert numbers(host, (gpu(P(10, 2000)),), held, (program(10),)) == ("0", "0", "0")
    assert numbers(host, (gpu(P(10, 2500)),), held, (program(10),)) == ("0", "0", "500")


def test_account_of_a_cooling_lease_with_unknown_processes_cannot_tell_what_lingers() -> None:
    """Then only the memory, or the grace, can."""
    held = holders(lease(A, 1000, None, state="cooling"))
    host = Host()
    assert numbers(host, (gpu(P(20, 5)),), held, (program(20),)) == ("5", "1000", "0")
    (said,) = host.look((gpu(P(20, 5)),), held, (program(20),)).reports.values()
    assert said["cooling_unattributed_mb"] == "1000"


def test_account_of_two_cooling_leases_says_what_each_still_uses() -> None:
    """Told apart where their processes are; else the one that ended last is said to use it."""
    host = Host()
    first = lease(A, 1000, 10, state="cooling", expires_at_ms=5)
    held = holders(first, lease(B, 2000, 20, state="cooling", expires_at_ms=9))
    (said,) = host.look(
        (gpu(P(10, 300), P(20, 700)),), held, (program(10), program(20))
    ).reports.values()
    assert said["cooling"] == f"{B}=9:700:0,{A}=5:300:0"
    held = holders(first, lease(B, 2000, 10, state="cooling", expires_at_ms=9))
    (said,) = Host().look((gpu(P(10, 2300)),), held, (program(10),)).reports.values()
    assert said["cooling"] == f"{B}=9:2000:0,{A}=5:300:0"


def test_account_of_more_cooling_leases_than_there_is_room_for_tells_their_sums() -> None:
    """The script takes a list of 4 KiB."""
    many = [lease(f"{n:032x}", 10, None, state="cooling", expires_at_ms=n) for n in range(200)]
    (said,) = Host().look((gpu(),), holders(*many)).reports.values()
    assert len(said["cooling"]) <= 4000
    assert said["cooling_unattributed_mb"] == "2000"


@pytest.mark.parametrize(
    "device",
    [gpu(P(10, None)), gpu(processes=None), gpu(processes=None, used_mb=None)],
    ids=["memory of a process", "processes", "memory in use"],
)
def test_account_with_an_unknown_is_none(device: object) -> None:
    """usedGpuMemory null, as on MIG without privilege: the ledger reckons with what is used."""
    held = holders(lease(A, 1000, 10))
    assert numbers(Host(), (device,), held, (program(10),)) == ("", "", "")


@pytest.mark.parametrize(
    ("rows", "unleased_mb"),
    [
        ((P(10, 5),), "0"),
        ((P(10, None),), "0"),
        ((P(10, None), P(20, 700)), "700"),
        ((P(20, None),), "10000"),
        ((P(10, 5), P(20, None), P(20, 700)), "10700"),
    ],
)
def test_account_without_the_use_of_the_whole_goes_by_its_processes(
    rows: tuple[GpuProcess, ...], unleased_mb: str
) -> None:
    """Memory that they have is used; one without a lease that tells nothing may have all of it."""
    held = holders(lease(A, 1000, 10))
    device = gpu(*rows, used_mb=None, utilization_gpu_pct=0.0)
    programs = (program(10), program(20))
    (said,) = Host("10:10").look((device,), held, programs).reports.values()
    assert said["reported_unleased_mb"] == unleased_mb
    assert said["one_lease"] == USE_UNTOLD


@pytest.mark.parametrize(
    ("fields", "idle_mb"),
    [
        ({"used_mb": 6000, "unified": True}, "6512"),
        ({"used_mb": 6000, "unified": True, "utilization_gpu_pct": None}, "6512"),
        ({"used_mb": 6000, "unified": False}, "512"),
        ({"used_mb": None, "unified": True}, "512"),
    ],
)
def test_machine_s_own_use_of_unified_memory_keeps_a_gpu_unused(
    fields: dict[str, Any], idle_mb: str
) -> None:
    """Its system runs in the same memory; what a process on the GPU has is use of the GPU."""
    (said,) = Host().look((gpu(**fields),)).reports.values()
    assert said["idle_unleased_mb"] == idle_mb
    own = gpu(P(20, 2000, 0.0), used_mb=6000, unified=True)
    (said,) = Host().look((own,), None, (program(20),)).reports.values()
    assert (said["idle_unleased_mb"], said["reported_unleased_mb"]) == ("4512", "6000")
    untold = gpu(P(20, None, 0.0), used_mb=6000, unified=True)
    (said,) = Host().look((untold,), None, (program(20),)).reports.values()
    assert said["idle_unleased_mb"] == "512"


def test_account_of_a_device_with_more_leases_than_known_is_none() -> None:
    """The pool moved on between two readings: this sample's processes prove nothing."""
    held = holders(lease(A, 1000, 10), unsure=frozenset({"GPU-a"}))
    assert numbers(Host(), (gpu(P(20, 700)),), held, (program(20),)) == ("", "", "")


def test_account_in_a_container_is_none_and_says_why() -> None:
    """process_visibility: pids that mean nothing here are nobody's."""
    (said,) = Host().look((gpu(P(20, 700)),), None, unseen="in a container").reports.values()
    assert (said["reported_unleased_mb"], said["processes"], said["unseen"]) == (
        "",
        "",
        "in a container",
    )
    assert "squatter" not in said
