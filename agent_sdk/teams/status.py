"""Teams as they stand: what each holds, borrows and lends by its policy, and the order of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import TEAM_PARTY
from agent_sdk.teams.policy import FIELDS, ModelQuota, TeamPolicy
from agent_sdk.teams.sums import NOTHING, PartySums, of_quota

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LOOK_AHEAD_S: Final = 60
"""Seconds of what a team holds that count as used already, as in `lua/lib/teams.lua`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus(ModelQuota):
    """Quota of a model as it stands.

    Attributes:
        used_mb: MiB that the team holds on devices of it, offers included.
        reserved_mb: MiB of such devices that are reserved for its waiters.
        borrowed_mb: MiB that it holds beyond that quota.
    """

    used_mb: int
    reserved_mb: int
    borrowed_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamStatus(TeamPolicy):
    """Team as it stands: its policy, and what it has.

    Attributes:
        models: its quotas by model, as `ModelStatus` each.
        listed: it has a policy; False: only leases or waiters.
        used_mb, leases: what it holds, offers included.
        waiters: its places in the queue.
        reserved_mb: MiB of the devices that are reserved for its waiters.
        borrowed_mb: MiB that it holds beyond its quotas, each for itself.
        lent_mb: MiB of its quota that others hold: its part of what they borrow beyond memory that
            is in no quota, by what each team has left to lend.
        use_mb_s: MiB-seconds that it has used by now, decayed.
        share: the order of teams that borrow, the smaller first: `use_mb_s` and a minute of what
            it holds, by its weight; None: its weight is 0, so it comes last.
        used_share: its part of the use of all teams, 0 to 1.
        wanted_share: its part of the weights of all teams, 0 to 1.
    """

    name: str
    listed: bool
    used_mb: int
    leases: int
    waiters: int
    reserved_mb: int
    borrowed_mb: int
    lent_mb: int
    use_mb_s: float
    share: float | None
    used_share: float
    wanted_share: float

    @property
    def by_model(self) -> Mapping[str, ModelStatus]:
        """Its quotas by model, as they stand."""
        return {name: x for name, x in self.models.items() if isinstance(x, ModelStatus)}


def statuses(
    policies: Mapping[str, TeamPolicy],
    sums: Mapping[str, PartySums],
    *,
    now_ms: int,
    half_life_s: int,
    capacity_mb: int,
    by_model: Mapping[str, int] | None = None,
) -> tuple[TeamStatus, ...]:
    """Return every team that has a policy, leases or waiters, by name.

    by_model: what devices of each model hold that a policy names; `capacity_mb` is of all devices.
    """
    names = sorted({*policies, *_teams(sums)})
    of = {name: policies.get(name, TeamPolicy()) for name in names}
    has = {name: sums.get(TEAM_PARTY + name, NOTHING) for name in names}
    use = {name: x.use_at(now_ms, half_life_s) if policies else 0.0 for name, x in has.items()}
    ahead = {name: use[name] + LOOK_AHEAD_S * has[name].mb for name in names}
    nothing = dict.fromkeys(names, 0)
    borrowed = {name: _borrowed(of[name], has[name]) for name in names} if policies else nothing
    lent = _lent(of, has, capacity_mb, by_model or {}) if policies else nothing
    weights, uses = sum(x.weight for x in of.values()), sum(ahead.values())
    return tuple(
        TeamStatus(
            **{field: getattr(of[name], field) for field in FIELDS},
            models={model: _of_model(x, has[name], model) for model, x in of[name].models.items()},
            name=name,
            listed=name in policies,
            used_mb=has[name].mb,
            leases=has[name].leases,
            waiters=has[name].waiters,
            reserved_mb=has[name].reserved_mb,
            borrowed_mb=borrowed[name],
            lent_mb=lent[name],
            use_mb_s=use[name],
            share=ahead[name] / of[name].weight if of[name].weight else None,
            used_share=ahead[name] / uses if uses else 0.0,
            wanted_share=of[name].weight / weights if weights else 0.0,
        )
        for name in names
    )


def _teams(sums: Mapping[str, PartySums]) -> Iterable[str]:
    return (
        party.removeprefix(TEAM_PARTY)
        for party, x in sums.items()
        if party.startswith(TEAM_PARTY) and (x.leases or x.waiters)
    )


def _of_model(quota: ModelQuota, has: PartySums, model: str) -> ModelStatus:
    used_mb, reserved_mb = has.models.get(model, (0, 0))
    return ModelStatus(
        nominal_mb=quota.nominal_mb,
        borrow_mb=quota.borrow_mb,
        used_mb=used_mb,
        reserved_mb=reserved_mb,
        borrowed_mb=max(0, used_mb - quota.nominal_mb),
    )


def _unused(policy: TeamPolicy, has: PartySums) -> Iterable[tuple[str, int]]:
    """Return the MiB of each of its quotas that a team does not hold; below 0: it borrows."""
    models = ("", *policy.models)
    return (
        (model, policy.quota(model).nominal_mb - of_quota(policy, has, model)[0])
        for model in models
    )


def _borrowed(policy: TeamPolicy, has: PartySums) -> int:
    return sum(max(0, -mb) for _, mb in _unused(policy, has))


def _lent(
    of: Mapping[str, TeamPolicy],
    has: Mapping[str, PartySums],
    capacity_mb: int,
    by_model: Mapping[str, int],
) -> dict[str, int]:
    """Return what each team's quotas give to others now, of each model and of the rest."""
    lent = dict.fromkeys(of, 0)
    rest_mb = capacity_mb - sum(by_model.values())
    unused = {name: dict(_unused(policy, has[name])) for name, policy in of.items()}
    for model in ("", *by_model):
        parts = {name: mb[model] for name, mb in unused.items() if model in mb}
        idle = {name: _idle(of[name], model, mb) for name, mb in parts.items()}
        nominal_mb = sum(of[name].quota(model).nominal_mb for name in parts)
        in_no_quota_mb = max(0, (by_model[model] if model else rest_mb) - nominal_mb)
        borrowed_mb = sum(max(0, -mb) for mb in parts.values())
        lent_mb, all_idle_mb = max(0, borrowed_mb - in_no_quota_mb), sum(idle.values())
        part = min(1.0, lent_mb / all_idle_mb) if all_idle_mb else 0.0
        for name, mb in idle.items():
            lent[name] += round(mb * part)
    return lent


def _idle(policy: TeamPolicy, model: str, unused_mb: int) -> int:
    """Return the MiB of a quota that a team leaves to others; those of a model it lends whole."""
    idle_mb = max(0, unused_mb)
    limited = not model and policy.lend_mb is not None
    return min(policy.lend_mb or 0, idle_mb) if limited else idle_mb
