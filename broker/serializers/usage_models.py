"""Types of answers about use, for `usage_json` and for the OpenAPI document."""

from __future__ import annotations

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12


class UsageFigures(TypedDict):
    """Use of GPUs.

    Attributes:
        leases: leases that ended in the period.
        running: leases that run now, and ran in the period.
        held_hours: hours that leases were held, each lease counted once.
        gpu_hours: GPU-hours leased: of each GPU by the part of it that the lease had.
        busy_gpu_hours: of `gpu_hours`, while the leases' processes computed, as hosts observed.
        idle_gpu_hours: of `gpu_hours`, what hosts observed otherwise.
        unknown_gpu_hours: of `gpu_hours`, what no host observed.
        busy_share: the busy part of what hosts observed, 0 to 1; null: nothing was observed.
        mb_hours: MiB-hours leased.
        above_peak_mb_hours: of `mb_hours`, what was beyond the peak of leases whose peak is known.
        waits: leases that ended in the period, and had waited.
        mean_wait_s: the mean wait of these; null: none had.
        energy_kwh: energy, as far as hosts know it.
        cost: the price of `gpu_hours`; null: the policy has no prices.
    """

    leases: int
    running: int
    held_hours: float
    gpu_hours: float
    busy_gpu_hours: float
    idle_gpu_hours: float
    unknown_gpu_hours: float
    busy_share: float | None
    mb_hours: float
    above_peak_mb_hours: float
    waits: int
    mean_wait_s: float | None
    energy_kwh: float
    cost: float | None


class UsageGroup(UsageFigures):
    """Use of one group; null: the group has all of them.

    Attributes:
        day: a day of UTC, as 2026-11-30.
        host: a host; `-`: leases on a CPU.
        model: a model of GPUs; `cpu`: leases on a CPU.
        gpu_hours_by_hour: by host, GPU-hours of each hour of the day in UTC; else empty.
        gpu_hours_by_day: with `daily`, GPU-hours of each day from `first_day` on; else empty.
    """

    day: str | None
    team: str | None
    agent: str | None
    host: str | None
    model: str | None
    gpu_hours_by_hour: list[float]
    gpu_hours_by_day: list[float]


class UsageOfPeriod(TypedDict):
    """Use of GPUs in a period.

    Attributes:
        now: the time of the reading; leases that run are counted up to it.
        since: the begin of the period.
        until: its end.
        first_day: the first day of UTC whose sums are counted.
        last_day: the last one.
        by: the words that rows are grouped by.
        total: all together.
        prices: the price of a GPU-hour by model, `*` for others.
        unpriced: models that were used and have no price.
        rows: the groups, the most GPU-hours first; by day the earliest first.
    """

    now: float
    since: float
    until: float
    first_day: str
    last_day: str
    by: list[str]
    total: UsageGroup
    prices: dict[str, float]
    unpriced: list[str]
    rows: list[UsageGroup]


class GpuOfPastLease(TypedDict):
    """GPU that a lease had, or its part of one."""

    uuid: str
    memory_mb: int


class PastLease(TypedDict):
    """Lease that is over; null: not known.

    Attributes:
        id: its place in the history; later ones are greater.
        token: the name that it had; of another key's lease its beginning.
        outcome: how it ended: released, expired, revoked or preempted.
        host: where it was; null: on a CPU.
        model: the GPUs' model; `cpu`: on a CPU.
        memory_mb: MiB on all GPUs together.
        gpu_hours: of each GPU by the part of it that the lease had.
        waited_s: how long it had waited; null: it had not.
        observed_gpu_s: seconds that hosts have observed, summed over its GPUs.
        busy_gpu_s: of these, while its processes computed.
        peak_mb: the most MiB that its processes used.
        energy_kwh: energy of its GPUs by its part.
    """

    id: str
    token: str
    agent: str
    team: str
    host: str | None
    model: str
    gpus: list[GpuOfPastLease]
    memory_mb: int
    outcome: str
    granted_at: float
    ended_at: float
    held_s: float
    waited_s: float | None
    gpu_hours: float
    observed_gpu_s: float | None
    busy_gpu_s: float | None
    peak_mb: int | None
    energy_kwh: float | None


class PastLeases(TypedDict):
    """Leases that are over.

    Attributes:
        next: the cursor of the page after this one; null: this is the last.
        last: the id of the newest entry that was looked at, for `after`.
    """

    leases: list[PastLease]
    next: str | None
    last: str
