"""The last minutes of each GPU: a point for each step, of readings that are made anyway."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from broker.live.trends import POINTS, STEP_S, Trends

STEP_MS = STEP_S * 1000
T0 = 1_795_600_000_000 // STEP_MS * STEP_MS
FIRST = T0 // STEP_MS


def device(uuid: str, busy: float | None, used_mb: int | None = 250) -> Any:
    telemetry = {"utilization_gpu_pct": busy}
    return SimpleNamespace(uuid=uuid, telemetry=telemetry, used_mb=used_mb, total_mb=1000)


def test_point_is_the_last_reading_of_its_step() -> None:
    """Two readings in fifteen seconds make one point; what is not told is null."""
    trends = Trends()
    trends.sample(T0, [device("a", 10.4)])
    trends.sample(T0 + STEP_MS - 1, [device("a", 89.6)])
    trends.sample(T0 + STEP_MS, [device("a", None, None)])
    assert trends.told() == {
        "step_s": STEP_S,
        "devices": {"a": [(FIRST, 90, 25), (FIRST + 1, None, None)]},
    }


def test_ten_minutes_are_remembered_of_those_that_are_there() -> None:
    """Older samples go, and all samples of a device that is gone."""
    trends = Trends()
    for n in range(POINTS + 5):
        trends.sample(T0 + n * STEP_MS, [device("a", n), device("b", n)][: 1 if n > POINTS else 2])
    points = trends.told()["devices"]
    assert points.keys() == {"a"}
    assert [point[0] - FIRST for point in points["a"]] == list(range(5, POINTS + 5))


def test_pool_without_memory_figures_has_points_all_the_same() -> None:
    """A device whose size is not known."""
    trends = Trends()
    unknown = SimpleNamespace(uuid="a", telemetry={"utilization_gpu_pct": 1}, used_mb=3, total_mb=0)
    trends.sample(T0, [unknown])  # type: ignore[list-item] # the fields that it reads
    assert trends.told()["devices"] == {"a": [(FIRST, 1, None)]}
