"""Body of the request that sets the policies of teams, made of the table of their fields."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

from agent_sdk.keys import MODEL, TEAM
from agent_sdk.teams.policy import FIELDS, MODEL_FIELDS, MODELS_MEANING, MOST_MODELS, MOST_TEAMS
from broker.http.requests import with_meanings

_FIELDS = [
    (name, Annotated[int, Field(strict=True, ge=of.least, le=of.most)] | None, None)
    for name, of in FIELDS.items()
]

ModelQuotaBody = make_dataclass(
    "ModelQuotaBody",
    [field for field in _FIELDS if field[0] in MODEL_FIELDS],
    namespace={"__pydantic_config__": ConfigDict(extra="forbid")},
    frozen=True,
)
ModelQuotaBody.__doc__ = with_meanings(
    "Quota of a model of GPUs; null: the default.", {name: FIELDS[name] for name in MODEL_FIELDS}
)
ModelQuotaBody.__module__ = __name__

_MODELS: Any = Annotated[
    dict[str, ModelQuotaBody],  # type: ignore[valid-type] # a class made at run time
    Field(
        max_length=MOST_MODELS,
        json_schema_extra={"propertyNames": {"pattern": f"^{MODEL.pattern}$"}},
    ),
]

TeamPolicyBody = make_dataclass(
    "TeamPolicyBody",
    [*_FIELDS, ("models", _MODELS | None, None)],
    namespace={"__pydantic_config__": ConfigDict(extra="forbid")},
    frozen=True,
)
TeamPolicyBody.__doc__ = with_meanings(
    "Policy of a team; null: the default.", FIELDS, models=MODELS_MEANING
)
TeamPolicyBody.__module__ = __name__

if TYPE_CHECKING:
    OfTeams = dict[str, Any]
else:
    OfTeams = Annotated[
        dict[str, TeamPolicyBody],
        Field(
            max_length=MOST_TEAMS,
            json_schema_extra={"propertyNames": {"pattern": f"^{TEAM.pattern}$"}},
        ),
    ]


@dataclass(frozen=True, slots=True)
class TeamsBody:
    """PUT /policy/teams.

    Attributes:
        teams: the policy of each team by its name; a team that is not there has none any more.
    """

    teams: OfTeams
