"""Any sequence of looks: intervals that never overlap, count once, and hold no more than was seen.

The real reckoner, and a pool that may lose a report or its answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.attribution.lease_use import GAP_MS
from broker.devices.sample import GpuProcess
from tests.attribution.uses import Told, look
from tests.attribution.worlds import Host, gpu, holders, lease, program

TOKENS = {letter * 16: pid for pid, letter in enumerate("abc", 10)}
WATTS = 250.0


class Step(NamedTuple):
    """One look, and the fate of its report.

    Attributes:
        busy: percent of the time that the process of each lease computed; None: the driver does
            not tell. A lease that is not in it is over, or has yet to begin.
        sees: the driver names the processes.
        lost: the report, or its answer; else neither.
    """

    after_ms: int
    busy: dict[str, float | None]
    sees: bool
    lost: str


@dataclass
class PoolWord:
    """Knowledge of a pool: it takes an interval that begins where it knows nothing yet.

    Attributes:
        sums: milliseconds with a known load, busy ones, millijoules, MiB at the peak.
    """

    until_ms: dict[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)

    def take(self, told: dict[str, Told]) -> None:
        """Take a report."""
        for token, of in told.items():
            if of.from_ms < self.until_ms.get(token, 0):
                continue
            self.until_ms[token] = of.to_ms
            known, busy, energy, peak = self.sums.get(token, (0, 0, 0, 0))
            self.sums[token] = (
                known + (0 if of.busy_ms is None else of.length_ms),
                busy + (of.busy_ms or 0),
                energy + (of.energy_mj or 0),
                max(peak, of.peak_mb or 0),
            )


ORDINARY = st.sampled_from([0, 1, 300, 1000, 5000, 5000, 5000, 15_000, 29_999])
STEPPING = st.sampled_from([-100_000, -29_000, -5, 0, 5000, 5000, 30_001, 500_000])


def steps(after_ms: st.SearchStrategy[int], *lost: str) -> st.SearchStrategy[list[Step]]:
    """Looks, at these times; of two reports one at most is lost."""
    load = st.one_of(st.none(), st.floats(0, 100))
    one = st.builds(
        Step,
        after_ms,
        st.dictionaries(st.sampled_from([*TOKENS]), load),
        st.sampled_from([True, True, True, False]),
        st.sampled_from(["", *lost]),
    )
    return st.lists(one, min_size=2, max_size=40)


def walk(taken: list[Step]) -> tuple[PoolWord, PoolWord, dict[str, list[Told]], int]:
    """Return two pools, one that had the reports without an answer, and all that was told.

    The last number is the energy that the device has drawn.
    """
    host = Host(*(f"{pid}:{pid}" for pid in TOKENS.values()))
    programs = tuple(program(pid) for pid in TOKENS.values())
    all_of_it, answered = PoolWord(), PoolWord()
    told: dict[str, list[Told]] = {}
    last = [Step(5000, {}, True, "")] * 5
    before_lost = False
    for step in (*taken, *last):
        processes = [GpuProcess(TOKENS[token], 500, pct) for token, pct in step.busy.items()]
        held = holders(*(lease(token, 1000, TOKENS[token]) for token in step.busy))
        device = gpu(
            *processes, utilization_gpu_pct=50.0, power_draw_w=WATTS,
            unseen="" if step.sees else "not all are named",
        )  # fmt: skip
        is_lost = bool(step.lost) and not before_lost
        before_lost = is_lost
        said = look(host, device, held, programs, after_s=step.after_ms / 1000, taken=not is_lost)
        if not is_lost or step.lost == "answer":
            all_of_it.take(said)
        if not is_lost:
            answered.take(said)
        for token, each in said.items():
            told.setdefault(token, []).append(each)
    moved = sum(step.after_ms for step in taken[1:] if 0 < step.after_ms <= GAP_MS)
    return all_of_it, answered, told, round(WATTS * moved)


def observed_ms(taken: list[Step], token: str) -> int:
    """Return the time between two looks that both saw a lease, where they were near each other.

    By a clock that waits for the pool's when that was set back a little.
    """
    now_ms = at_ms = taken[0].after_ms
    found = 0
    for before, step in pairwise(taken):
        now_ms += step.after_ms
        passed_ms = now_ms - at_ms
        if passed_ms < -GAP_MS or passed_ms > 0:
            at_ms = now_ms
        if token in before.busy and token in step.busy and 0 < passed_ms <= GAP_MS:
            found += passed_ms
    return found


@settings(max_examples=80, deadline=None)
@given(taken=steps(ORDINARY, "report", "answer"))
def test_intervals_are_what_was_seen_however_reports_fare(taken: list[Step]) -> None:
    """A pool that has a report twice, or late, has the same in the end as one with each once."""
    all_of_it, answered, told, drawn_mj = walk(taken)
    assert all_of_it.sums == answered.sums
    for token, each in told.items():
        distinct = sorted(set(each), key=lambda of: of[:2])
        assert all(one.to_ms <= other.from_ms for one, other in pairwise(distinct)), each
        seen_ms = observed_ms(taken, token)
        assert sum(of.length_ms for of in distinct) <= seen_ms
        known_ms, busy_ms, energy_mj, _ = all_of_it.sums[token]
        assert busy_ms <= known_ms <= seen_ms
        assert energy_mj <= drawn_mj + len(each)
    total_mj = sum(energy for _, _, energy, _ in all_of_it.sums.values())
    assert total_mj <= drawn_mj + sum(map(len, told.values())), "rounded once in each interval"


@settings(max_examples=60, deadline=None)
@given(taken=steps(STEPPING, "report", "answer"))
def test_intervals_of_a_clock_that_steps_are_never_longer_than_it_says(taken: list[Step]) -> None:
    """Time that is not known is left out, and none counts twice in the pool."""
    all_of_it, _, told, _ = walk(taken)
    for token, each in told.items():
        for of in each:
            assert of.from_ms <= of.to_ms
            assert of.busy_ms is None or of.busy_ms <= of.length_ms
        assert all_of_it.sums[token][0] <= observed_ms(taken, token)
