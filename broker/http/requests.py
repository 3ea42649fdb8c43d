"""Bodies and queries of requests. Integers are strict: 2.0, "5" and true are no integers."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

from fastapi import Query
from pydantic import AfterValidator, AliasChoices, Field

from agent_sdk.keys import EVENT_ID, TEAM
from agent_sdk.policy import (
    FIELDS,
    LISTS,
    MOST_MB,
    Action,
    MemoryLimit,
    PolicyField,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_sdk.policy import Policy

MOST = 2**53 - 1
"""Largest integer that is exact in every JSON reader."""


def _zero_or_one(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError("must be 0 (no expiry) or at least 1 second")
    return seconds


Agent = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/-]{1,128}$")]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{16,64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._ -]{1,64}$")]
Team = Annotated[str, Field(pattern=rf"^{TEAM.pattern}$")]
Model = Annotated[str, Field(pattern=r"^[ -)+-~]{0,95}[A-Za-z0-9][ -)+-~]{0,95}$", max_length=96)]
EventId = Annotated[str, Field(pattern=f"^{EVENT_ID.pattern}$", description="As 1795607407688-0.")]
Seconds = Annotated[float, Field(strict=True, ge=0, le=604800, allow_inf_nan=False)]
Wait = Annotated[float, Field(strict=True, ge=0, le=60, allow_inf_nan=False)]
Ttl = Annotated[Seconds, AfterValidator(_zero_or_one)]
Memory = Annotated[int, Field(strict=True, ge=0, le=MOST_MB)]
Reason = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,256}$")]
Flag = Annotated[bool, Field(strict=True)]
LISTS_SAY: Final = {
    "xid_actions": "By commas, as 31=suspect,79=hold; what is not named is NVIDIA's table's.",
    "prices": "By commas, as NVIDIA H200=3.2,*=1; a model that is not named has the price of *.",
}

SAFE_MODE: Final = "safe_mode"
"""Field of the policy that no request sets."""

MOST_ROWS: Final = 1000
"""Most rows of a page."""

OF_A_PAGE: Final = "a cursor is the `next` of the page before, as it came"

CURSOR: Final = Query(
    max_length=256, description="`next` of the page before, as it came; none: the first page."
)


def readable(parse: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """Return a validator of cursors: it takes those that `parse` can read."""

    def check(cursor: str | None) -> str | None:
        if cursor is not None:
            try:
                parse(cursor)
            except ValueError:
                raise ValueError(OF_A_PAGE) from None
        return cursor

    return check


Limit = Annotated[
    int | None,
    Query(ge=1, le=MOST_ROWS, description="Most rows; the answer then has `total` and `next`."),
]

OfHost = Annotated[Name | None, Query(description="Only those of this host.")]

OfAgent = Annotated[Agent | None, Query(description="Only those of this agent.")]

T = TypeVar("T")


def form_of(field: PolicyField) -> Any:
    """Return the type that checks a field of the policy."""
    if field.kind == "number":
        return Annotated[int, Field(strict=True, ge=field.least, le=field.most)]
    if field.kind in LISTS:
        form, longest, _ = LISTS[field.kind]
        says = LISTS_SAY[field.kind]
        return Annotated[
            str, Field(pattern=rf"^{form.pattern}$", max_length=longest, description=says)
        ]
    return {"flag": Flag, "action": Action, "memory_limit": MemoryLimit}[field.kind]


def with_meanings(says: str, fields: Mapping[str, PolicyField], **others: str) -> str:
    """Return a docstring with the meanings of fields of the policy, and of others by name."""
    meanings = {name: x.meaning for name, x in fields.items()} | others
    return "\n".join([says, "", "Attributes:", *(f"    {n}: {x}" for n, x in meanings.items())])


def with_policy_fields(body: type[T]) -> type[T]:
    """Add the fields of the policy's table to a body, each optional and null by default."""
    added = [(x.name, form_of(x) | None, None) for x in FIELDS.values() if x.name != SAFE_MODE]
    made = make_dataclass(body.__name__, added, bases=(body,), frozen=True, slots=True)
    made.__doc__ = with_meanings(str(body.__doc__), {name: FIELDS[name] for name, *_ in added})
    made.__module__ = body.__module__
    return made


@dataclass(frozen=True, slots=True)
class LeaseBody:
    """POST /lease.

    Attributes:
        agent: the agent in whose name it is.
        exclusive: alone on the device, with all its memory.
        ttl_s: seconds without a renewal after which it ends; 0: never; null = the broker's default.
        priority: 9 is served first.
        model: the exact name; null = any.
        placement: on the emptiest device, or on the fullest that has room.
        min_memory_mb: MiB on each device, also as `memory_mb`; 0 or null = the policy's default.
        devices: more than 1: whole idle devices of one host and model.
        max_hold_s: limit of all renewals together; null = no limit.
        wait_s: wait in the queue so long; then the answer is 202 and the place is held for 10 s.
            0 decides now, also for a request that is in the queue already.
        host: null = this broker's own if it has devices, else any; "any" or a name.
        token: the idempotency key: repeating the request with it is safe.
        on_unavailable: `cpu`: a CPU lease when no GPU fits; `refuse`: 409.
        team: the team for whose quota it counts; null = the key's, else `default`.
        preemptible: it may be ended for others at any time, with notice.
        yields: its holder is told when a waiter wants what it has.
        after: the token of a lease that was preempted, whose job this one goes on with.
    """

    agent: Agent
    min_memory_mb: Annotated[
        Memory | None, Field(validation_alias=AliasChoices("min_memory_mb", "memory_mb"))
    ] = None
    devices: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    exclusive: Annotated[bool, Field(strict=True)] = False
    ttl_s: Ttl | None = None
    wait_s: Wait = 0.0
    priority: Annotated[int, Field(strict=True, ge=0, le=9)] = 0
    host: Name | None = None
    model: Model | None = None
    placement: Literal["spread", "pack"] = "spread"
    max_hold_s: Seconds | None = None
    token: Token | None = None
    on_unavailable: Literal["cpu", "refuse"] = "cpu"
    team: Team | None = None
    preemptible: Flag = False
    yields: Flag = False
    after: Token | None = None


@dataclass(frozen=True, slots=True)
class RenewBody:
    """POST /renew.

    Attributes:
        ttl_s: from now on; null = as at the grant.
        fence: compared if given.
    """

    token: Token
    ttl_s: Ttl | None = None
    fence: Annotated[int, Field(strict=True, ge=0, le=MOST)] | None = None


@dataclass(frozen=True, slots=True)
class ReleaseBody:
    """POST /release: an impossible token is an unknown one.

    Attributes:
        refuse_late: refuse an unknown token from now on: its POST /lease may still be on its way.
    """

    token: Annotated[str, Field(max_length=256)]
    refuse_late: Flag = False


@with_policy_fields
class PolicyBody:
    """POST /policy: absent or null fields stay unchanged. SAFE_MODE cannot be set here."""

    def changes(self) -> Policy:
        """Return the changed fields."""
        said = {name: getattr(self, name) for name in FIELDS if name != SAFE_MODE}
        return cast("Policy", {name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True, slots=True)
class DrainBody:
    """POST /drain, /undrain, /forget: a device by its id, or a host with all its devices."""

    device: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,80}$")] | None = None
    host: Name | None = None
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class RevokeBody:
    """POST /revoke: one lease by its token; or all leases of an agent, on a host, or both.

    Attributes:
        force: end it now, although its holder still trusts it; else at the next renewal, within a
            minute.
    """

    token: Token | None = None
    agent: Agent | None = None
    host: Name | None = None
    reason: Reason = ""
    force: Flag = False


@dataclass(frozen=True, slots=True)
class HookBody:
    """POST /hooks.

    Attributes:
        url: `https://...`, or a URL of apprise for Slack, Matrix or mail.
        on: names of events; none: all.
        name: of a-z, 0-9 and -; empty = a made one.
        secret: `whsec_...`; empty = a made one.
    """

    url: Annotated[str, Field(max_length=4096)]
    on: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=64)] = ()
    name: Annotated[str, Field(max_length=32)] = ""
    secret: Annotated[str, Field(max_length=256, repr=False)] = ""
