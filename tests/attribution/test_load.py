"""Load of a lease, how busy it is and how much it uses: known where it is sure, else unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.devices.sample import GpuProcess
from tests.attribution.uses import look
from tests.attribution.worlds import Host, gpu, holders, lease, program

if TYPE_CHECKING:
    from broker.attribution.processes import Program
    from broker.devices import DeviceSample

P = GpuProcess
A, B, C = "a" * 16, "b" * 16, "c" * 16
HELD = holders(lease(A, 4000, 10), lease(B, 2000, 20))
PROGRAMS = (program(10), program(20))


def busy_and_peak(
    device: DeviceSample, held: Any = HELD, programs: tuple[Program, ...] = PROGRAMS
) -> dict[str, tuple[int | None, int | None]]:
    """The percents of each lease's time that it was busy, and its peak, over three looks."""
    host = Host("10:10", "20:20")
    look(host, device, held, programs)
    for _ in range(3):
        told = look(host, device, held, programs)
    ended = look(host, gpu(), holders())
    percents = {
        token: None if of.busy_ms is None else round(100 * of.busy_ms / of.length_ms)
        for token, of in told.items()
    }
    peaks = {token: of.peak_mb for token, of in (told | ended).items()}
    return {token: (percents.get(token), peaks[token]) for token in peaks}


def test_load_is_of_a_lease_s_processes_together() -> None:
    """Children count for their parent's lease, and no more than all of the time."""
    device = gpu(P(10, 1000, 70.0), P(11, 500, 80.0), P(20, 300, 5.0), utilization_gpu_pct=90.0)
    told = busy_and_peak(device, programs=(program(10), program(11, 10), program(20)))
    assert told == {A: (100, 1500), B: (5, 300)}


def test_load_without_processes_is_none_at_all() -> None:
    """A lease that nothing uses was idle, whatever the others on its GPU do."""
    held = holders(lease(A, 4000, 10), lease(B, 2000, 20))
    told = busy_and_peak(gpu(P(10, 1000, 70.0), utilization_gpu_pct=70.0), held)
    assert told == {A: (70, 1000), B: (0, 0)}


def test_load_by_the_device_is_of_the_one_lease_that_has_processes() -> None:
    """AMD's driver, and nvidia-smi, do not tell how busy each process is."""
    alone = gpu(P(10, 1000), utilization_gpu_pct=60.0)
    assert busy_and_peak(alone) == {A: (60, 1000), B: (0, 0)}
    both = gpu(P(10, 1000), P(20, 500), utilization_gpu_pct=60.0)
    assert busy_and_peak(both) == {A: (None, 1000), B: (None, 500)}
    quiet = gpu(P(10, 1000), P(20, 500), utilization_gpu_pct=0.0)
    assert busy_and_peak(quiet) == {A: (None, 1000), B: (None, 500)}, "else all known time is idle"


def test_load_beside_a_process_without_a_lease_is_unknown_by_the_device() -> None:
    """It may be the one that computes; by the driver's word on each the load is known."""
    programs = (program(10), program(20), program(66))
    device = gpu(P(10, 1000), P(20, 500), P(66, 100), utilization_gpu_pct=60.0)
    assert busy_and_peak(device, programs=programs)[A] == (None, 1000)
    device = gpu(P(10, 1000, 0.0), P(20, 500, 1.0), P(66, 100, 60.0), utilization_gpu_pct=60.0)
    assert busy_and_peak(device, programs=programs) == {A: (0, 1000), B: (1, 500)}


def test_load_of_a_gpu_that_is_busy_by_none_is_unknown() -> None:
    """The driver contradicts itself: only a lease that is alone there can be the busy one."""
    device = gpu(P(10, 1000, 0.0), P(20, 500, 0.0), utilization_gpu_pct=60.0)
    assert busy_and_peak(device) == {A: (None, 1000), B: (None, 500)}
    held = holders(lease(A, 4000, 10))
    device = gpu(P(10, 1000, 0.0), utilization_gpu_pct=60.0)
    assert busy_and_peak(device, held) == {A: (60, 1000)}
    assert busy_and_peak(device) == {A: (60, 1000), B: (None, 0)}


def test_load_by_a_driver_that_calls_working_processes_idle_is_unknown_at_rest_too() -> None:
    """Else all time that is known would be idle; its word counts again once it names one."""
    host = Host("10:10", "20:20")
    works = gpu(P(10, 1000, 0.0), P(20, 500, 0.0), utilization_gpu_pct=60.0)
    rests = gpu(P(10, 1000, 0.0), P(20, 500, 0.0), utilization_gpu_pct=0.0)
    named = gpu(P(10, 1000, 30.0), P(20, 500, 0.0), utilization_gpu_pct=30.0)
    hardly = gpu(P(10, 1000, 0.0), P(20, 500, 0.0), utilization_gpu_pct=3.0)
    moments = (rests, works, rests, named, rests, hardly, rests)
    told = [look(host, moment, HELD, PROGRAMS) for moment in moments for _ in range(4)]
    told += [look(host, gpu(), holders()) for _ in range(2)]
    known = [said[A] for said in told if A in said and said[A].busy_ms is not None]
    assert sum(of.length_ms for of in known) == (3 + 4 + 4 + 4) * 5000
    assert [of.busy_ms for of in known if of.busy_ms] == [0.3 * 4 * 5000]


def test_load_under_mps_is_the_device_s_where_one_lease_is_there() -> None:
    """The driver may count the work of all clients as the server's."""
    programs = (*PROGRAMS, program(5, name="nvidia-cuda-mps-server"[:15]))
    server = P(5, 30, 60.0)
    one = gpu(P(10, 1000, 0.0), server, utilization_gpu_pct=60.0, mps=True)
    assert busy_and_peak(one, programs=programs)[A] == (60, 1000)
    unlisted = gpu(P(10, 1000, 30.0), P(20, 500, 0.0), utilization_gpu_pct=60.0, mps=True)
    assert busy_and_peak(unlisted) == {A: (None, 1000), B: (None, 500)}
    two = gpu(P(10, 1000, 0.0), P(20, 500, 0.0), server, utilization_gpu_pct=60.0, mps=True)
    assert busy_and_peak(two, programs=programs) == {A: (None, 1000), B: (None, 500)}


@pytest.mark.parametrize(
    "more",
    [
        {"processes": None},
        {"unseen": "some processes of other containers"},
        {"used_mb": 9000},
        {"utilization_gpu_pct": None, "processes": None, "state": "error", "reason": "hangs"},
    ],
)
def test_load_of_processes_that_are_not_all_seen_is_unknown(more: dict[str, Any]) -> None:
    """Not even of those that are seen: others may be the lease's too."""
    device = gpu(**({"processes": (P(10, 1000, 50.0),), "utilization_gpu_pct": 50.0} | more))
    assert busy_and_peak(device) == {}


def test_load_beside_memory_that_no_process_explains_is_unknown() -> None:
    """Also where the policy lets others use so much: the lease's child may be in a container."""
    host = Host("10:10", idle_foreign_mb=4096)
    device = gpu(P(10, 1000, 50.0), used_mb=3000, utilization_gpu_pct=50.0)
    told = [look(host, device, holders(lease(A, 4000, 10)), PROGRAMS) for _ in range(4)]
    assert [of.peak_mb for said in told for of in said.values()] == [None]


def test_load_of_a_part_is_its_memory_alone() -> None:
    """The driver's word on a part's work is of the whole GPU; no part has power of its own."""
    device = gpu(
        P(10, 1000, 50.0), parent="GPU-whole", utilization_gpu_pct=50.0, power_draw_w=300.0
    )
    host, held = Host("10:10"), holders(lease(A, 4000, 10))
    for _ in range(4):
        told = look(host, device, held, PROGRAMS)
    assert (told[A].busy_ms, told[A].peak_mb, told[A].energy_mj) == (None, 1000, None)


def test_load_of_a_lease_whose_processes_are_unknown_may_be_a_stranger_s() -> None:
    """Over HTTP no process is registered: the one without a lease may be its own."""
    held = holders(lease(A, 4000, None), lease(B, 2000, 20))
    programs = (program(20), program(66))
    device = gpu(P(20, 500, 10.0), P(66, 700, 50.0), utilization_gpu_pct=60.0)
    assert busy_and_peak(device, held, programs) == {B: (10, 500)}
    idle = gpu(P(20, 500, 10.0), P(66, 700, 0.0), utilization_gpu_pct=10.0)
    assert busy_and_peak(idle, held, programs) == {B: (10, 500)}, "not at rest alone either"
    desktop = gpu(P(20, 500, 10.0), P(66, 70, 2.0, draws=True, computes=False))
    assert busy_and_peak(desktop, held, programs) == {A: (0, 0), B: (10, 500)}


def test_load_of_a_process_of_two_leases_is_both_s_and_its_memory_divided() -> None:
    """It works for each; what it uses is divided by what each holds, rounded up."""
    held = holders(lease(A, 4000, 10), lease(B, 2000, 10))
    told = busy_and_peak(gpu(P(10, 3001, 40.0), utilization_gpu_pct=40.0), held)
    assert told == {A: (40, 2001), B: (40, 1001)}


def test_load_of_a_simulated_gpu_is_its_utilization() -> None:
    """Nothing computes on it, and it names no processes."""
    device = gpu(processes=None, used_mb=0, simulated=True, power_draw_w=60.0)
    host, held = Host(), holders(lease(A, 4000, None))
    look(host, device, held)
    for _ in range(3):
        told = look(host, device, held)
    assert (told[A].busy_ms, told[A].peak_mb, told[A].energy_mj) == (0, None, 60 * 15_000)
