"""Families of teams: of those with a policy, and of the default one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from broker.metrics.health import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from agent_sdk.state.snapshot import PoolStatus
    from agent_sdk.teams.status import TeamStatus


def team_families(pool: PoolStatus, teams: Sequence[TeamStatus]) -> Iterator[Metric]:
    """Yield what each team has, and how many leases were told to end for others."""
    yield CounterMetricFamily(
        "gpu_broker_preemption_notices",
        "Leases that were told to end for others; those that did are lease_ends.",
        value=pool.stats.get("noticed", 0),
    )
    yield CounterMetricFamily(
        "gpu_broker_preemption_withdrawals",
        "Notices that were withdrawn: the lease goes on.",
        value=pool.stats.get("notices_withdrawn", 0),
    )
    values: dict[str, tuple[str, dict[str, float]]] = {
        "nominal_bytes": ("Quota of its own.", {x.name: x.own_mb * MIB for x in teams}),
        "used_bytes": ("Held by its leases.", {x.name: x.used_mb * MIB for x in teams}),
        "borrowed_bytes": (
            "Held by its leases beyond its quota.", {x.name: x.borrowed_mb * MIB for x in teams}
        ),
        "lent_bytes": (
            "Held by others of its quota.", {x.name: x.lent_mb * MIB for x in teams}
        ),
        "leases": ("Its leases.", {x.name: x.leases for x in teams}),
        "waiters": ("Its requests in the queue.", {x.name: x.waiters for x in teams}),
        "use_ratio": ("Its part of the use of all teams.", {x.name: x.used_share for x in teams}),
        "weight_ratio": (
            "Its part of the weights of all teams.", {x.name: x.wanted_share for x in teams}
        ),
    }  # fmt: skip
    yield from _by_model(teams)
    for name, (says, of) in values.items():
        family = GaugeMetricFamily(f"gpu_broker_team_{name}", says, labels=["team"])
        for team, value in of.items():
            family.add_metric([team], value)
        yield family


def _by_model(teams: Sequence[TeamStatus]) -> Iterator[Metric]:
    """Yield what each team has of the models that its policy names."""
    words = {
        "nominal": ("Quota of its own of a model.", "nominal_mb"),
        "used": ("Held by its leases of a model that its policy names.", "used_mb"),
        "borrowed": ("Held by its leases beyond its quota of a model.", "borrowed_mb"),
    }
    for name, (says, field) in words.items():
        family = GaugeMetricFamily(
            f"gpu_broker_team_model_{name}_bytes", says, labels=["team", "model"]
        )
        for team in teams:
            for model, quota in team.by_model.items():
                family.add_metric([team.name, model], getattr(quota, field) * MIB)
        yield family
