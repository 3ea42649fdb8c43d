"""Policy of teams: the one declaration of its fields, its values, and its line in the store.

Lua has its own literal table; a test compares both. It stands in `lua/lib/teams.lua`, with the
rules: quotas that are lent and borrowed, and the order between teams that borrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

from agent_sdk.errors import error_for
from agent_sdk.keys import MODEL, TEAM
from agent_sdk.policy import MOST_MB, TEN_YEARS_S, WEEK_S, PolicyField

MOST_TEAMS: Final = 256
"""Most teams with a policy."""

MOST_PRIORITY: Final = 9

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
        "Seconds without renewal that its requests, and renewals, may ask for at most. A renewal "
        "that asks for more gets so long, or what its lease was granted with.",
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


def named(policies: Mapping[str, TeamPolicy]) -> list[str]:
    """Return the models that any policy has a quota of."""
    return sorted({model for policy in policies.values() for model in policy.models})
