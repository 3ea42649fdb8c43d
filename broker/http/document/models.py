"""Types of the other answers, made of the tables that the answers are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from agent_sdk.policy import FIELDS
from agent_sdk.state.explain import Explanation
from agent_sdk.state.reservations import Reservation
from agent_sdk.teams.policy import FIELDS as TEAM_FIELDS
from agent_sdk.teams.policy import MODEL_FIELDS, MODELS_MEANING
from broker.http.requests import form_of, with_meanings
from broker.serializers.device_models import extended
from broker.serializers.lease_json import POLICY_NAMES
from broker.serializers.lease_models import WithIgnored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.teams.policy import TeamField


class Liveness(TypedDict):
    """Liveness of a process.

    Attributes:
        pool: the name of the pool.
        pool_id: the pool's data set; null: not known yet.
        replica: this process's name among the replicas.
        worker: its number among several workers.
    """

    status: Literal["ok"]
    safe_mode: bool
    redis: Literal["up", "down"]
    pool: str
    pool_id: str | None
    version: str
    replica: str
    worker: NotRequired[int]


class Ready(TypedDict):
    """Readiness: leases can be granted."""

    ready: Literal[True]


class NotReady(TypedDict):
    """Obstacle to leases."""

    ready: Literal[False]
    reason: str


class PolicyVersion(WithIgnored):
    """Policy of the pool.

    Attributes:
        version: grows with each change.
        note: the reason for which a change was not enacted.
    """

    version: int
    note: NotRequired[str]


def _policy() -> Any:
    """Return the type of a policy, with the fields of its table and their meanings."""
    fields = {POLICY_NAMES.get(name, name): of for name, of in FIELDS.items()}
    made = extended("Policy", PolicyVersion, {name: form_of(of) for name, of in fields.items()})
    made.__doc__ = with_meanings("Policy of the pool.", fields)
    return made


POLICY: Final[Any] = _policy()
"""Body of `/policy`."""

EXPLANATION: Final[Any] = extended("Explanation", Explanation, {}, Reservation=Reservation)
"""Body of the explanations; each field is there."""


class TeamStanding(TypedDict):
    """Team: its policy, and what it has.

    Attributes:
        name: the team.
        listed: it has a policy; false: it only has leases or waiters.
        used_mb: MiB that it holds, offers included.
        reserved_mb: MiB of the devices that are reserved for its waiters.
        borrowed_mb: MiB that it holds beyond its quota.
        lent_mb: MiB of its quota that others hold.
        use_mb_s: MiB-seconds that it has used by now, decayed.
        share: the order of teams that borrow, the smaller first; null: after all others.
        used_share: its part of the use of all teams.
        wanted_share: its part of the weights of all teams.
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


class ModelStanding(TypedDict):
    """Holdings of a team on devices of a model.

    Attributes:
        used_mb: MiB that it holds on devices of it, offers included.
        reserved_mb: MiB of such devices that are reserved for its waiters.
        borrowed_mb: MiB that it holds beyond that quota.
    """

    used_mb: int
    reserved_mb: int
    borrowed_mb: int


class _NoFields(TypedDict):
    """No field."""


def _of_model(name: str, base: type, says: str) -> Any:
    """Return a type with the fields of a model's quota and their meanings."""
    fields = {name: TEAM_FIELDS[name] for name in MODEL_FIELDS}
    made = extended(name, base, _numbers(fields))
    made.__doc__ = with_meanings(says, fields) + _own(base)
    return made


def _numbers(fields: Mapping[str, TeamField]) -> dict[str, Any]:
    return {name: int | None if of.default is None else int for name, of in fields.items()}


def _own(base: type) -> str:
    return str(base.__doc__).partition("Attributes:")[2].rstrip()


MODEL_QUOTA: Final[Any] = _of_model(
    "ModelQuota", _NoFields, "Quota of a model of GPUs; null: no limit."
)

MODEL_STATUS: Final[Any] = _of_model(
    "ModelStatus", ModelStanding, "Quota of a model of GPUs, and what a team has of it."
)


def _of_team(name: str, base: type, says: str, model: Any) -> Any:
    """Return a type with the fields of a team's policy and their meanings."""
    made = extended(name, base, _numbers(TEAM_FIELDS) | {"models": dict[str, model]})
    meanings = with_meanings(says, TEAM_FIELDS, models=MODELS_MEANING)
    made.__doc__ = meanings + _own(base)
    return made


TEAM_POLICY: Final[Any] = _of_team(
    "TeamPolicy", _NoFields, "Policy of a team; null: no limit.", MODEL_QUOTA
)

TEAM_STATUS: Final[Any] = _of_team(
    "TeamStatus", TeamStanding, "Team: its policy, and what it has; null: no limit.", MODEL_STATUS
)


class Teams(TypedDict):
    """Teams that have a policy, leases or waiters, by name."""

    teams: list[TEAM_STATUS]


class TeamPolicies(WithIgnored):
    """Policies of all teams by name.

    Attributes:
        version: that of the policy; it grows with each change.
    """

    version: int
    teams: dict[str, TEAM_POLICY]


class Drained(WithIgnored):
    """Number of devices."""

    drained: int


class Undrained(WithIgnored):
    """Number of devices."""

    undrained: int


class Forgotten(WithIgnored):
    """Number of devices."""

    forgotten: int


class Revoked(WithIgnored):
    """Tokens of leases that end.

    Attributes:
        expires_at: the end of the one that was named by its token.
    """

    revoked: list[str]
    expires_at: NotRequired[float]


class HookRow(TypedDict):
    """Webhook, and its progress.

    Attributes:
        on: the events that it is sent.
        disabled: the reason for which it gets none.
        delivered: the number of events that it took.
        delivered_at: the time of the last of them.
        failed: the number of failures one after the other.
        failing_since: the time of the first of them.
        error: its last failure.
        backlog: the events that are still to be sent.
        missed: the events that the pool forgot before they were sent.
        by: the operator that added it.
    """

    name: str
    url: str
    on: list[str]
    state: str
    disabled: str | None
    delivered: int
    delivered_at: float | None
    failed: int
    failing_since: float | None
    error: str | None
    error_at: float | None
    backlog: int
    missed: int
    by: str | None
    created_at: float | None


class AddedHook(HookRow, WithIgnored):
    """New webhook.

    Attributes:
        secret: the key of its signatures, told this once; null: it is not signed.
    """

    secret: str | None


class HookList(TypedDict):
    """Webhooks.

    Attributes:
        served: a broker delivers to them.
    """

    hooks: list[HookRow]
    served: bool


class RemovedHook(TypedDict):
    """Name of a webhook that is no more."""

    removed: str


class HookTest(TypedDict):
    """Outcome of a test event.

    Attributes:
        delivered: it was taken.
        said: the outcome in words.
        status: the HTTP status; null: there was none.
        answer: the begin of the answer.
    """

    delivered: bool
    said: str
    status: int | None
    answer: str
    took_s: float


class RequestFault(BaseModel):
    """Fault of a request."""

    type: str = Field(description="A word that never changes.")
    loc: list[str | int] = Field(description="Its place: `body` or `query`, then names.")
    msg: str = Field(description="The same for people.")


class Problem(BaseModel):
    """Error of the API: RFC 9457, and `code`."""

    model_config = ConfigDict(extra="allow")

    detail: str | list[RequestFault] = Field(
        description="For people. Of a request that is not well-formed: its faults; "
        "a sentence, where `application/problem+json` was asked for."
    )
    code: str | None = Field(None, description="For programs: a word that never changes.")
    retryable: bool | None = Field(None, description="The same request may succeed later.")
    retry_after_s: float | None = Field(None, description="Seconds until that may be.")
    reason: str | None = Field(None, description="Code of the end of a lease that is over.")
    ignored: list[str] | None = Field(None, description="Names in the body that are not known.")
    errors: list[RequestFault] | None = Field(None, description="Faults of a malformed request.")
    type: str = Field(description="URI that names the code, or `about:blank`.")
    title: str = Field(description="The code in words.")
    status: int = Field(description="The HTTP status.")
    instance: str = Field(description="URI of this answer: `#`, and its X-Request-ID.")
