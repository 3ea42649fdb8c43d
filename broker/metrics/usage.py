"""Families of use: what finished leases had, of teams with a policy and of the default one.

A lease counts when it ends, all at once. So these tell of days and weeks; what is leased now is in
`gpu_broker_leases` and in the families of teams and devices.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from agent_sdk.usage.totals import PEAKS
from broker.metrics.health import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from agent_sdk.usage.sums import UseSums
    from agent_sdk.usage.totals import UsageTotals

MS: Final = 1000

WHEN: Final = "A lease counts when it ends."

COUNTERS: Final[dict[str, tuple[str, Callable[[UseSums], float]]]] = {
    "leases": ("Finished leases.", lambda x: x.leases),
    "memory_byte_seconds": ("Leased memory by time.", lambda x: x.mb_ms * MIB / MS),
    "memory_above_peak_byte_seconds": (
        "Of that, what was beyond the most that a lease used.", lambda x: x.above_mb_ms * MIB / MS
    ),
    "energy_joules": ("Energy, where hosts know it.", lambda x: x.energy_mj / MS),
    "waits": ("Finished leases that had waited.", lambda x: x.waits),
    "wait_seconds": ("How long these had waited.", lambda x: x.waited_ms / MS),
}  # fmt: skip
"""Help and value of each counter, by its name after `gpu_broker_usage_`."""

GPU_TIMES: Final[dict[str, Callable[[UseSums], int]]] = {
    "busy": lambda x: x.busy_gpu_ms,
    "idle": lambda x: x.known_gpu_ms - x.busy_gpu_ms,
    "unknown": lambda x: x.gpu_ms - x.known_gpu_ms,
}
"""Parts of the leased GPU-time; together they are all of it."""


def usage_families(seen: UsageTotals) -> Iterator[Metric]:
    """Yield what finished leases had, by team, and how full they were at their peak."""
    times = CounterMetricFamily(
        "gpu_broker_usage_gpu_seconds",
        f"Leased GPU-time, by whether the lease's processes computed. {WHEN}",
        labels=["team", "use"],
    )
    for team, total in seen.teams.items():
        for use, ms in GPU_TIMES.items():
            times.add_metric([team, use], max(0, ms(total)) / MS)
    yield times
    for name, (says, value) in COUNTERS.items():
        family = CounterMetricFamily(f"gpu_broker_usage_{name}", f"{says} {WHEN}", labels=["team"])
        for team, total in seen.teams.items():
            family.add_metric([team], value(total))
        yield family
    yield _peaks(seen)


def _peaks(seen: UsageTotals) -> Metric:
    """Return the histogram of peaks.

    The pool counts leases by bucket and has no sum of their parts, so there is no `_sum`, and with
    it no `_count`, as OpenMetrics wants it; the bucket `+Inf` has all leases.
    """
    family = HistogramMetricFamily(
        "gpu_broker_lease_peak_ratio",
        f"Most memory that a lease used, as a part of what it had. {WHEN}",
    )
    if seen.peaks:
        counts = accumulate(seen.peaks.get(most, 0) for most in PEAKS)
        bounds = (most if most == "+Inf" else str(float(most)) for most in PEAKS)
        family.add_metric([], list(zip(bounds, counts, strict=True)), None)
    return family
