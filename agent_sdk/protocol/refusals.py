"""Refusals with a detail that a caller needs: the limit, its party, and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_sdk.errors import AgentCapExceeded, LeaseError, TeamLimit, error_for
from agent_sdk.keys import KEY_PARTY as KEY
from agent_sdk.keys import MODEL_SUM
from agent_sdk.keys import TEAM_PARTY as TEAM
from agent_sdk.protocol.messages import ANY, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable

AN_OPERATOR_SETS_IT: Final = "an operator changes that: gpu-broker policy apply"
"""End of the sentences about limits of teams."""

_PARTY_SAYS: Final = {
    ("limit", KEY): "API key {} has too many leases or waiters already, under all its agents",
    ("limit", TEAM): "team {} has too many leases or waiters already (its max_leases, "
    f"max_waiters); {AN_OPERATOR_SETS_IT}",
    ("agent_cap", KEY): "API key {} is at its cap, with all its agents (policy "
    "max_memory_per_agent_mb)",
    ("agent_cap", TEAM): "team {} may hold no more now: its quota (nominal_mb), and what it may "
    f"borrow (borrow_mb) and others lend (lend_mb), are used, or its max_leases; "
    f"{AN_OPERATOR_SETS_IT}",
}
"""Sentences about a cap of a party that is no agent."""

_LIMIT_SAYS: Final = {
    "max_priority": "may ask for a priority of at most {}",
    "max_ttl_s": "may ask for a ttl_s of 1 to {} s",
    "max_hold_s": "may hold a lease for at most {} s",
    "most_mb": "may never hold more than {} MiB (nominal_mb and borrow_mb)",
}
"""Sentences about limits of single requests, by the word of the detail."""


def party_says(code: str, party: str) -> str | None:
    """Return the sentence of `limit` or `agent_cap` for a party; None: it is an agent."""
    team, by_model, model = party.partition(MODEL_SUM)
    if by_model and team.startswith(TEAM):
        of = "any model that would do" if model == ANY else model
        return (
            f"team {team.removeprefix(TEAM)} may hold no more of {of} now: its quota of that model "
            "(nominal_mb), and what it may borrow (borrow_mb) and others lend, are used, or its "
            f"max_leases; {AN_OPERATOR_SETS_IT}"
        )
    for kind in (KEY, TEAM):
        if party.startswith(kind) and (code, kind) in _PARTY_SAYS:
            return _PARTY_SAYS[code, kind].format(party.removeprefix(kind))
    return None


def team_unknown_says(team: str) -> str:
    """Return the sentence for a team that the policy does not name."""
    return f"team {team} is not in this pool's policy; an operator adds it: gpu-broker policy apply"


def team_limit_says(detail: str, team: str = "") -> str:
    """Return the sentence for a limit of a team, such as `max_priority=3`."""
    name, _, most = detail.partition("=")
    name, by_model, model = name.partition("@")
    whose = f"team {team}" if team else "its team"
    says = _LIMIT_SAYS.get(name, f"is limited by its {name} of {{}}").format(most)
    if by_model:
        of = "any one model" if model == ANY else model
        return (
            f"{whose} may never hold more than {most} MiB of {of} (nominal_mb and borrow_mb of its "
            f"quotas by model); {AN_OPERATOR_SETS_IT}"
        )
    field = "" if name == "most_mb" else f" (its {name})"
    return f"{whose} {says}{field}; {AN_OPERATOR_SETS_IT}"


def schema_mismatch(schema: str) -> str:
    """Return a sentence about the way out for a pool with keys of another layout."""
    says = f"the pool has schema {schema[:20]}, and this version works on schema {SCHEMA}: "
    if schema in map(str, range(SCHEMA)):
        return f"{says}stop what uses the pool, delete its keys (gpu:{{POOL}}:*), then start anew"
    return f"{says}upgrade this version"


_SAYS: Final[dict[str, Callable[[str], str]]] = {
    "bad_request": "the request is not well-formed: {} cannot be that".format,
    "protocol_mismatch": schema_mismatch,
    "in_use": "{} has a lease, or memory that is not free yet: revoke it, then forget again".format,
    "team_unknown": team_unknown_says,
    "conflict": "the policy is at version {} by now: read it, and apply the change to that".format,
}
"""Sentences of refusals with a detail."""


def refused(code: str, detail: str, token: str | None, team: str = "") -> LeaseError:
    """Return the error for a refusal by its code and detail; `team`: of the request, if known."""
    says = _SAYS[code](detail) if code in _SAYS and detail else None
    if code == "team_limit" and detail:
        says = team_limit_says(detail, team)
    error = error_for(code, says or party_says(code, detail), token=token)
    if isinstance(error, AgentCapExceeded):
        error.party = detail or "agent"
    if isinstance(error, TeamLimit):
        error.limit = detail if code == "team_limit" else ""
    return error
