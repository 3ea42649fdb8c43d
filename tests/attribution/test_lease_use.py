"""Use of leases: intervals that count once, and nothing in them that was not seen."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from broker.attribution.lease_use import MOST_UNTOLD, ROOM
from broker.attribution.report import ReportBuilder
from broker.devices.sample import GpuProcess
from tests.attribution.uses import Told, intervals, look
from tests.attribution.worlds import Host, device_status, gpu, holders, lease, program

if TYPE_CHECKING:
    from agent_sdk.state.holders import Holders
    from broker.devices import DeviceSample

P = GpuProcess
A, B = "a" * 16, "b" * 16
HELD = holders(lease(A, 4000, 10))
BOTH = holders(lease(A, 4000, 10), lease(B, 2000, 20))
PROGRAMS = (program(10), program(20))


def works(pct: float = 50.0, mb: int = 1000, watts: float | None = 300.0) -> DeviceSample:
    """The GPU while the process of A computes."""
    return gpu(P(10, mb, pct), utilization_gpu_pct=pct, power_draw_w=watts)


def test_use_begins_with_an_interval_without_length_and_its_peak() -> None:
    """The time before the first look is not known."""
    host = Host("10:10")
    told = look(host, works(), HELD, PROGRAMS)
    assert told == {A: Told(host.now_ms, host.now_ms, None, 1000, None)}


def test_use_is_told_every_fifteen_seconds_and_joins_without_a_gap() -> None:
    """Two reports of three say nothing of it: a report tells only what changed."""
    host = Host("10:10")
    looks = [look(host, works(), HELD, PROGRAMS) for _ in range(7)]
    assert [len(told) for told in looks] == [1, 0, 0, 1, 0, 0, 1]
    first, second, third = looks[0][A], looks[3][A], looks[6][A]
    assert (first.to_ms, second.to_ms) == (second.from_ms, third.from_ms)
    assert second == Told(first.to_ms, first.to_ms + 15_000, 7500, 1000, 300 * 15_000)


def test_use_of_all_leases_is_told_at_the_same_looks() -> None:
    """Else a report would have news at every look."""
    host = Host("10:10", "20:20")
    looks = [look(host, works(), HELD, PROGRAMS), look(host, works(), BOTH, PROGRAMS)]
    looks += [look(host, works(), BOTH, PROGRAMS) for _ in range(5)]
    assert [sorted(told) for told in looks] == [[A], [B], [], [A, B], [], [], [A, B]]


def test_use_takes_the_load_at_the_end_of_each_interval_between_looks() -> None:
    """Drivers tell the mean since they were asked last."""
    host = Host("10:10")
    for pct in (100.0, 0.0, 20.0, 40.0):
        told = look(host, works(pct), HELD, PROGRAMS)
    assert told[A].busy_ms == (0 + 20 + 40) * 50


def test_use_of_a_lease_that_is_over_is_told_at_once_up_to_the_look_before() -> None:
    """The moment of its end, between the two looks, is not known here."""
    host = Host("10:10")
    begin = look(host, works(), HELD, PROGRAMS)[A].to_ms
    look(host, works(100.0, mb=3000), HELD, PROGRAMS)
    told = look(host, works(), holders(), PROGRAMS)
    assert told == {A: Told(begin, begin + 5000, 5000, 3000, 300 * 5000)}
    assert look(host, works(), holders(), PROGRAMS) == {}


def test_use_of_a_cooling_lease_is_over() -> None:
    """Its memory is withheld, and it is no lease any more."""
    host = Host("10:10")
    begin = look(host, works(), HELD, PROGRAMS)[A].to_ms
    look(host, works(), HELD, PROGRAMS)
    cooling = holders(lease(A, 4000, 10, state="cooling", expires_at_ms=host.now_ms + 1000))
    assert look(host, works(), cooling, PROGRAMS)[A].to_ms == begin + 5000
    assert look(host, works(), cooling, PROGRAMS) == {}


def test_use_that_was_not_taken_is_told_again_unchanged() -> None:
    """And what came after it only once it is: each interval begins where the one before ends."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS)
    for _ in range(3):
        told = look(host, works(), HELD, PROGRAMS, taken=False)
    for _ in range(5):
        assert look(host, works(90.0, mb=2000), HELD, PROGRAMS, taken=False) == told
    assert look(host, works(), HELD, PROGRAMS) == told
    later = [look(host, works(), HELD, PROGRAMS) for _ in range(3)][-1]
    assert (later[A].from_ms, later[A].to_ms) == (told[A].to_ms, host.now_ms)
    assert later[A].peak_mb == 2000


def test_use_that_was_not_taken_is_told_before_the_last_of_an_ended_lease() -> None:
    """One of a token in each report; the reporter hurries, because the lease is folded soon."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS)
    for _ in range(4):
        first = look(host, works(), HELD, PROGRAMS, taken=False)
    assert host.reckoner.hurries is False
    assert look(host, works(), holders(), PROGRAMS) == first
    assert host.reckoner.hurries is True
    last = look(host, works(), holders(), PROGRAMS, after_s=0.05)
    assert (last[A].from_ms, last[A].length_ms) == (first[A].to_ms, 5000)
    assert host.reckoner.hurries is False
    assert look(host, works(), holders(), PROGRAMS) == {}


def test_use_of_an_ended_lease_is_not_told_for_ever() -> None:
    """A minute after the end it is accounted for, whether it was told or not."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS, taken=False)
    told = [look(host, works(), holders(), PROGRAMS, taken=False) for _ in range(15)]
    assert [bool(each) for each in told] == [True] * 13 + [False] * 2
    assert host.reckoner.hurries is False


@pytest.mark.parametrize(
    ("report_s", "after_s", "known"),
    [(5, 29, True), (5, 31, False), (20, 59, True), (20, 61, False)],
)
def test_use_between_two_looks_far_apart_is_unknown(
    report_s: float, after_s: float, known: bool
) -> None:
    """The process was stopped, or the driver hung: a new interval begins."""
    host = Host("10:10")
    host.reckoner = ReportBuilder(host.system, report_s)
    look(host, works(), HELD, PROGRAMS)
    before = look(host, works(), HELD, PROGRAMS) or None
    told = look(host, works(), HELD, PROGRAMS, after_s=after_s)
    at_ms = host.now_ms
    assert before is None
    assert told[A].length_ms == 5000 + (after_s * 1000 if known else 0)
    later = [look(host, works(), HELD, PROGRAMS) for _ in range(3)][-1]
    assert (later[A].from_ms, later[A].to_ms) == (at_ms, host.now_ms)


def test_use_does_not_overlap_when_the_clock_is_set_back_a_little() -> None:
    """No time passes until the clock has caught up."""
    host = Host("10:10")
    begin = look(host, works(), HELD, PROGRAMS)[A].to_ms
    for after_s in (5, -3, 2, 5, 6):
        told = look(host, works(), HELD, PROGRAMS, after_s=after_s)
    assert (told[A].from_ms, told[A].to_ms) == (begin, begin + 15_000)


def test_use_begins_anew_when_the_clock_is_set_back_far() -> None:
    """The pool's clock is another one; what was seen by the old one is told."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS)
    look(host, works(), HELD, PROGRAMS)
    assert look(host, works(), HELD, PROGRAMS, after_s=-500)[A].length_ms == 5000
    later = [look(host, works(), HELD, PROGRAMS) for _ in range(3)][-1]
    assert later[A].length_ms == 15_000


def test_use_begins_anew_in_a_pool_that_has_lost_its_data() -> None:
    """The new one has no word about the lease yet."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS)
    look(host, works(), HELD, PROGRAMS)
    host.pool = Host(epoch="2").pool
    told = look(host, works(), HELD, PROGRAMS)
    assert told == {A: Told(host.now_ms, host.now_ms, None, 1000, None)}


def test_use_that_is_unknown_for_a_while_is_an_interval_of_its_own() -> None:
    """Known time is told without it, and of it the known values: here its energy."""
    host = Host("10:10")
    unseen = gpu(P(10, 500), unseen="of another container", power_draw_w=100.0)
    devices = (works(), works(), unseen, unseen, works(), works(), works())
    looks = [look(host, device, HELD, PROGRAMS) for device in devices]
    told = [said[A] for said in looks if said][1:]
    assert [(of.length_ms, of.busy_ms, of.energy_mj) for of in told] == [
        (5000, 2500, 300 * 5000),
        (10_000, None, 200 * 5000 + 100 * 5000),
        (15_000, 7500, 200 * 5000 + 2 * 300 * 5000),
    ]
    assert [of.peak_mb for of in told] == [1000] * 3


def test_use_of_which_nothing_is_known_is_not_told() -> None:
    """A device in error has no numbers; a lease there is told of only that it is watched."""
    host = Host("10:10")
    silent = gpu(state="error", reason="hangs", processes=None, used_mb=None)
    looks = [look(host, silent, HELD, PROGRAMS) for _ in range(9)]
    assert looks[0] == {A: Told(host.now_ms - 40_000, host.now_ms - 40_000, None, None, None)}
    assert looks[1:] == [{}] * 8
    assert look(host, silent, holders(), PROGRAMS) == {}


def test_peak_is_the_most_of_all_looks_also_of_children() -> None:
    """An engine allocates in processes of its own."""
    host, programs = Host("10:10"), (program(10), program(11, 10), program(12, 11, 10))
    for used in ((100, 0), (2000, 900), (50, 60)):
        device = gpu(P(10, 10, 1.0), P(11, used[0], 1.0), P(12, used[1], 1.0))
        look(host, device, HELD, programs)
    assert look(host, gpu(), holders(), programs)[A].peak_mb == 2910


def test_peak_of_nothing_is_told_at_the_end_if_all_was_seen() -> None:
    """No later look could take it back, and a lease may be about to begin."""
    host = Host("10:10")
    looks = [look(host, gpu(), HELD, PROGRAMS) for _ in range(4)]
    assert [of.peak_mb for said in looks for of in said.values()] == [None, None]
    assert look(host, gpu(), holders()) == {
        A: Told(host.now_ms - 5000, host.now_ms - 5000, None, 0, None)
    }


def test_lease_that_may_be_at_work_unseen_is_not_idle_in_between() -> None:
    """WSL names no process: only the quiet looks could be told, and all would be idle."""
    host = Host("10:10")
    quiet, busy = gpu(used_mb=0), gpu(used_mb=5000, utilization_gpu_pct=90.0)
    looks = [look(host, device, HELD) for device in (quiet, quiet, busy, quiet, busy, quiet, quiet)]
    known = [of.busy_ms for said in looks[1:] for of in said.values()]
    assert known == [0], "before the first of them it was idle"
    assert look(host, quiet, holders()) == {}, "nor is it known that it used no memory"


def test_use_of_a_lease_granted_after_the_look_begins_with_the_next_one() -> None:
    """Leases are read after the devices were looked at."""
    host = Host("10:10")
    young = holders(lease(A, 4000, 10, granted_at_ms=host.now_ms + 6000))
    assert look(host, works(), young, PROGRAMS) == {}
    assert look(host, works(), young, PROGRAMS)[A].to_ms == host.now_ms


def test_use_of_more_leases_than_a_field_has_room_for_comes_in_turn() -> None:
    """Each is told, an interval at a time; those that are over come first."""
    host = Host()
    tokens = [f"{n:064d}" for n in range(200)]
    held = holders(*(lease(token, 1, None) for token in tokens))
    seen: set[str] = set()
    for _ in range(3):
        reckoning = host.look((gpu(),), held)
        assert len(reckoning.reports["GPU-a"]["use"]) <= ROOM
        host.reckoner.told()
        told = intervals(reckoning)
        assert not seen & told.keys()
        seen |= told.keys()
    assert seen == {*tokens}


def test_use_of_a_lease_that_is_over_comes_before_all_that_waits() -> None:
    """It is accounted for in some seconds, and the others go on."""
    host = Host()
    tokens = [f"{n:064d}" for n in range(200)]
    held = holders(*(lease(token, 1, None) for token in tokens))
    look(host, gpu(), held)
    look(host, gpu(), held)
    rest = holders(*(lease(token, 1, None) for token in tokens[1:]))
    told = look(host, gpu(), rest)
    assert next(iter(told)) == tokens[0]
    assert told[tokens[0]].length_ms == 5000


def test_use_is_told_by_the_reporter_that_names_findings_alone() -> None:
    """Two reporters of one host would tell the same time twice."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS)
    other = device_status(finder="another1", finder_ms=host.now_ms + 5000)
    found = holders(lease(A, 4000, 10), devices=(other,))
    assert [look(host, works(), found, PROGRAMS) for _ in range(4)] == [{}] * 4
    told = look(host, works(), HELD, PROGRAMS)
    assert told[A].from_ms == told[A].to_ms == host.now_ms, "and it begins anew later on"


def test_use_that_waits_is_of_few_intervals() -> None:
    """While the pool takes nothing the oldest make room, and the rest is told in order."""
    host = Host("10:10")
    look(host, works(), HELD, PROGRAMS)
    for n in range(20):
        look(host, works(watts=300.0 if n % 4 < 2 else None), HELD, PROGRAMS, taken=False)
    told = [look(host, works(), HELD, PROGRAMS)[A] for _ in range(MOST_UNTOLD)]
    assert all(one.to_ms <= other.from_ms for one, other in pairwise(told))
    assert told[0].from_ms > host.now_ms - 100_000


def energy_of(host: Host, *devices: DeviceSample, held: Holders = HELD) -> list[int | None]:
    """The energy of A in each interval, from the first look to its end."""
    told = [look(host, device, held, PROGRAMS) for device in devices]
    told += [look(host, gpu(), holders()) for _ in range(2)]
    return [said[A].energy_mj for said in told if A in said][1:]


def test_energy_is_the_counter_s_where_there_is_one() -> None:
    """A counter that was set anew, or jumps, gives way to the power; without both it is unknown."""
    counters = (10**9, 10**9 + 700_000, 5_000, 10**12, None, 6_000)
    devices = [
        gpu(P(10, 1000, 50.0), power_draw_w=None if counter == 6_000 else 100.0, energy_mj=counter)
        for counter in counters
    ]
    assert energy_of(Host("10:10"), *devices) == [700_000 + 2 * 500_000, 500_000, None]


def test_energy_by_power_is_that_of_both_looks() -> None:
    """The mean of two moments, as nvidia-smi and AMD's driver tell them."""
    devices = [gpu(P(10, 1000, 50.0), power_draw_w=watts) for watts in (100.0, 200.0, 400.0)]
    assert energy_of(Host("10:10"), *devices) == [(150 + 300) * 5000]


@pytest.mark.parametrize(
    ("a", "b", "part"),
    [
        (30.0, 10.0, 3 / 4),
        (0.0, 10.0, 0),
        (0.0, 0.0, 2 / 3),
        (None, None, 2 / 3),
        (None, 10.0, 2 / 3),
    ],
)
def test_energy_is_divided_by_work_else_by_memory(
    a: float | None, b: float | None, part: float
) -> None:
    """All of a device's energy is its leases' while there are any, whatever share they hold."""
    busy = 0.0 if a == b == 0 else 40.0
    device = gpu(P(10, 10, a), P(20, 10, b), utilization_gpu_pct=busy, power_draw_w=120.0)
    mj = energy_of(Host("10:10", "20:20"), *[device] * 3, held=BOTH)
    assert mj == [round(120 * 10_000 * part)]


def test_energy_before_a_lease_came_is_not_its_own() -> None:
    """Nor is what was drawn until the look at which it was seen first."""
    host = Host("10:10")
    assert [look(host, works(), holders(), PROGRAMS) for _ in range(3)] == [{}] * 3
    assert energy_of(host, works(), works()) == [300 * 5000]
