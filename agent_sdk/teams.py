"""Policy of teams: the one declaration of its fields, and how teams stand by it.

Lua has its own literal table; a test compares both. It stands in `lua/lib/teams.lua`, with the
rules: quotas that are lent and borrowed, and the order between teams that borrow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import error_for
from agent_sdk.keys import MODEL, MODEL_SUM, RESERVED_SUM, TEAM, TEAM_PARTY
from agent_sdk.policy import MOST_MB, TEN_YEARS_S, WEEK_S, PolicyField

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_TEAMS: Final = 256
"""Most teams with a policy."""

MOST_PRIORITY: Final = 9

LOOK_AHEAD_S: Final = 60
"""Seconds of what a team holds that count as used already, as in `lua/lib/teams.lua`."""

_MILLION: Final = 1_000_000

MOST_MODELS: Final = 16
"""Most models that the policy of one team may have quotas of."""

_WORD = re.compile(r"([a-z_]+)(?:@([A-Za-z0-9._+-]{1,64}))?=([0-9]{1,13})")


def _number(label: str, meaning: str, *, most: int, default: int | None = None) -> Any:
    metadata = {"label": label, "meaning": meaning, "most": most}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelQuota:
    """Quota of one model of GPUs, for leases on devices of it.

    Attributes:
        nominal_mb: MiB of it that are the team's own.
        borrow_mb: MiB of it that the team may hold beyond that; None: no limit.
    """

    nominal_mb: int = 0
    borrow_mb: int | None = None

    @property
    def most_mb(self) -> int | None:
        """MiB of it that the team may ever hold; None: no limit."""
        return None if self.borrow_mb is None else self.nominal_mb + self.borrow_mb


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPolicy:
    """Policy of one team; None: no limit. `FIELDS` has more about each field.

    Attributes:
        models: quotas of models of GPUs, by model: leases on devices of one that is named count
            against its quota, all others against `nominal_mb` and `borrow_mb`.
    """

    weight: int = _number(
        "Weight among teams that borrow",
        "Share of what is borrowed, against the weights of the others; 0: after all others.",
        default=1, most=10_000,
    )  # fmt: skip
    nominal_mb: int = _number(
        "Quota of its own, MiB",
        "MiB that are the team's own: within it the team is served before teams that borrow, and "
        "gets back what others have borrowed.",
        default=0, most=MOST_MB,
    )  # fmt: skip
    borrow_mb: int | None = _number(
        "Most that it may borrow, MiB",
        "MiB that it may hold beyond its quota, of what others do not use.",
        most=MOST_MB,
    )
    lend_mb: int | None = _number(
        "Most that it lends, MiB",
        "MiB of its unused quota that others may hold.",
        most=MOST_MB,
    )
    max_priority: int | None = _number(
        "Highest priority of its requests",
        "Priority above which its requests are refused.",
        most=MOST_PRIORITY,
    )
    max_leases: int | None = _number(
        "Most leases", "Leases that all its agents may hold together.", most=_MILLION
    )
    max_waiters: int | None = _number(
        "Most places in the queue",
        "Places in the queue that all its agents may have together.",
        most=_MILLION,
    )
    max_hold_s: int | None = _number(
        "Longest lease, s; 0: no limit",
        "Seconds from its grant after which a lease ends, and the default of requests that name "
        "none; an operator may extend it.",
        most=TEN_YEARS_S,
    )
    max_ttl_s: int | None = _number(
        "Longest time to live, s; 0: no limit",
        "Seconds without renewal that its requests may ask for at most.",
        most=WEEK_S,
    )
    models: Mapping[str, ModelQuota] = field(default_factory=dict, hash=False)

    @property
    def own_mb(self) -> int:
        """MiB that are its own: its nominal quota, and those of models."""
        return self.nominal_mb + sum(x.nominal_mb for x in self.models.values())

    def quota(self, model: str) -> ModelQuota:
        """Return the quota that a lease on a device of this model counts against."""
        pool_wide = ModelQuota(nominal_mb=self.nominal_mb, borrow_mb=self.borrow_mb)
        return self.models.get(model, pool_wide)

    def limit(self, name: str) -> int | None:
        """Return a limit by its field; None: there is none."""
        found: int | None = getattr(self, name)
        return None if name in {"max_hold_s", "max_ttl_s"} and not found else found


@dataclass(frozen=True, slots=True)
class TeamField(PolicyField):
    """Field of a team's policy; its default None is no limit."""

    default: Any


def _declared(of: Field[Any]) -> TeamField:
    return TeamField(name=of.name, kind="number", default=of.default, **of.metadata)


FIELDS: Final[dict[str, TeamField]] = {
    x.name: _declared(x) for x in fields(TeamPolicy) if x.name != "models"
}
"""Fields of a team's policy by name, but for `models`, which has some of them for each model."""

MODELS_MEANING: Final = (
    "Quotas of models of GPUs, by model: leases on devices of a model that is named count against "
    "its quota, all others against the quota of the pool."
)
"""The effect of `models`, for documentation."""

MODEL_FIELDS: Final = tuple(x.name for x in fields(ModelQuota))
"""Fields of a team's policy that a quota of a model has too."""


def policy_of(values: Mapping[str, object]) -> TeamPolicy:
    """Return the policy with these values; None and what is not named: the default.

    Raises:
        BadRequest: there is no such field, or it takes no such value.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "models":
            found[name] = _models_of(value)
            continue
        if name not in FIELDS:
            raise error_for(
                "bad_request",
                f"a team has no field {name!r:.80}; its fields are {', '.join(FIELDS)}, models",
            )
        if value is not None:
            found[name] = FIELDS[name].to_store(value)
    return TeamPolicy(**found)


def _models_of(values: object) -> dict[str, ModelQuota]:
    """Return the quotas of models in these values; None: there are none."""
    quotas = values if isinstance(values, Mapping) else {} if values is None else None
    if quotas is None or len(quotas) > MOST_MODELS:
        raise error_for("bad_request", f"models must be at most {MOST_MODELS} quotas by model")
    return {_model(name): _quota_of(name, quota) for name, quota in quotas.items()}


def _model(name: object) -> str:
    if not isinstance(name, str) or not MODEL.fullmatch(name):
        raise error_for("bad_request", f"a model must match {MODEL.pattern}, not {name!r:.80}")
    return name


def _quota_of(model: str, values: object) -> ModelQuota:
    if isinstance(values, ModelQuota):
        values = {name: getattr(values, name) for name in MODEL_FIELDS}
    if not isinstance(values, Mapping) or set(values) - set(MODEL_FIELDS):
        raise error_for("bad_request", f"the quota of {model} may have {', '.join(MODEL_FIELDS)}")
    said: dict[str, Any] = {
        name: FIELDS[name].to_store(value) for name, value in values.items() if value is not None
    }
    return ModelQuota(**said)


def policy_in(status: TeamPolicy) -> TeamPolicy:
    """Return the policy alone of a team as it stands."""
    models = {
        model: ModelQuota(**{name: getattr(quota, name) for name in MODEL_FIELDS})
        for model, quota in status.models.items()
    }
    return TeamPolicy(**{name: getattr(status, name) for name in FIELDS}, models=models)


def parse(line: str) -> TeamPolicy:
    """Return a policy by its line in the store; words that this version does not know are left."""
    said, models = dict[str, int](), dict[str, dict[str, int]]()
    for word in line.split(" "):
        found = _WORD.fullmatch(word)
        if found and found[2] and found[1] in MODEL_FIELDS:
            models.setdefault(found[2].replace("+", " "), {})[found[1]] = int(found[3])
        elif found and not found[2] and found[1] in FIELDS:
            said[found[1]] = int(found[3])
    return TeamPolicy(
        **said, models={model: ModelQuota(**quota) for model, quota in models.items()}
    )


def line_of(policy: TeamPolicy) -> str:
    """Return the line of a policy: a word for each field that is not its default.

    Of a model the nominal quota is always said, so that the model is named.
    """
    values = ((name, getattr(policy, name), of.default) for name, of in FIELDS.items())
    words = [f"{name}={value}" for name, value, default in values if value != default]
    for model, quota in sorted(policy.models.items()):
        at = model.replace(" ", "+")
        words.append(f"nominal_mb@{at}={quota.nominal_mb}")
        words += [] if quota.borrow_mb is None else [f"borrow_mb@{at}={quota.borrow_mb}"]
    return " ".join(words)


def to_store(teams: Mapping[str, TeamPolicy | Mapping[str, object]]) -> list[str]:
    """Return the policies of all teams in the verb's form: names and lines in turn.

    Raises:
        BadRequest: a name, a field or a value is wrong, or there are too many teams.
    """
    if len(teams) > MOST_TEAMS:
        raise error_for("bad_request", f"at most {MOST_TEAMS} teams may have a policy")
    words: list[str] = []
    for name, of in teams.items():
        if not isinstance(name, str) or not TEAM.fullmatch(name):
            raise error_for(
                "bad_request", f"a team's name must match {TEAM.pattern}, not {name!r:.80}"
            )
        words += (name, line_of(of if isinstance(of, TeamPolicy) else policy_of(of)))
    return words


@dataclass(frozen=True, slots=True)
class PartySums:
    """Sums of one party, an agent, an API key or a team: what counts against its caps.

    Attributes:
        mb, leases: what it holds, offers included.
        waiters: its places in the queue.
        reserved_mb: MiB of the devices that are reserved for its waiters.
        use, use_ms: of a team: MiB-seconds that it had used by then, on the pool's clock; its
            use begins now where that is 0.
        models: of a team: MiB that it holds, and that are reserved for it, of each model that its
            policy names.
    """

    mb: int = 0
    leases: int = 0
    waiters: int = 0
    reserved_mb: int = 0
    use: float = 0.0
    use_ms: int = 0
    models: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)

    def use_at(self, now_ms: int, half_life_s: int) -> float:
        """Return the MiB-seconds that a team has used, as of now."""
        for_ms = now_ms - self.use_ms if self.use_ms else 0
        return decayed(self.use, self.mb, for_ms, half_life_s)


NOTHING: Final = PartySums()


def sums_of(row: Mapping[str, str]) -> dict[str, PartySums]:
    """Return the sums of each party, by the hash `agents`.

    Raises:
        ValueError: it is of another form.
    """
    models: dict[str, dict[str, tuple[int, int]]] = {}
    for word, at in ((MODEL_SUM, 0), (RESERVED_SUM, 1)):
        for name, value in row.items():
            party, by_model, model = name.partition(word)
            if by_model:
                held_mb, reserved_mb = models.setdefault(party, {}).get(model, (0, 0))
                mb = int(value)
                models[party][model] = (held_mb, mb) if at else (mb, reserved_mb)
    names = {field.partition("#")[0] for field in row}
    return {name: _sums(name, row, models.get(name, {})) for name in names}


def _sums(name: str, row: Mapping[str, str], models: Mapping[str, tuple[int, int]]) -> PartySums:
    use, _, use_ms = row.get(f"{name}#use", "0@0").partition("@")
    return PartySums(
        mb=int(row.get(name, 0)),
        leases=int(row.get(f"{name}#leases", 0)),
        waiters=int(row.get(f"{name}#waiters", 0)),
        reserved_mb=int(row.get(f"{name}#reserved", 0)),
        use=float(use),
        use_ms=int(use_ms),
        models=models,
    )


def decayed(use: float, mb: int, for_ms: int, half_life_s: int) -> float:
    """Return MiB-seconds after so long in which `mb` were held; half-life 0: no use decays."""
    if for_ms <= 0:
        return use
    if half_life_s == 0:
        return use + mb * for_ms / 1000
    left: float = 2.0 ** (-for_ms / 1000 / half_life_s)
    return use * left + mb * (half_life_s / math.log(2)) * (1 - left)


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


def of_quota(policy: TeamPolicy, has: PartySums, model: str) -> tuple[int, int]:
    """Return the MiB of the quota that counts on a model: those held, and those reserved."""
    if model in policy.models:
        return has.models.get(model, (0, 0))
    named = [has.models.get(each, (0, 0)) for each in policy.models]
    return has.mb - sum(x[0] for x in named), has.reserved_mb - sum(x[1] for x in named)


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


def named(policies: Mapping[str, TeamPolicy]) -> list[str]:
    """Return the models that any policy has a quota of."""
    return sorted({model for policy in policies.values() for model in policy.models})
