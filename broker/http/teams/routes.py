"""Teams over HTTP: how they stand, and their policies, which operators set as a whole."""

from __future__ import annotations

import re
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, HTTPException, Request
from starlette.responses import Response

from agent_sdk.errors import Conflict, error_for
from agent_sdk.teams.policy import policy_in
from broker.http.auth import Operator, Viewer
from broker.http.document.models import Problem, TeamPolicies, Teams
from broker.http.etag import TAGGED, known_tags
from broker.http.ignored import NamesIgnored
from broker.http.openapi import EVERYWHERE, WITH_BODY, answers, errors
from broker.http.teams.body import TeamsBody
from broker.live.slices import JSON, dumped
from broker.logs import note
from broker.replica import At, Broker

if TYPE_CHECKING:
    from broker.api_keys import Principal

router = APIRouter(responses=EVERYWHERE, route_class=NamesIgnored, tags=["operators"])

VERSION: Final = re.compile(r'(?:W/)?"([0-9]{1,13})"')

OTHER_VERSION: Final[dict[int | str, dict[str, Any]]] = {
    412: {
        "model": Problem,
        "description": "The policy has another version by now than `If-Match` names.",
    }
}

IfMatch = Annotated[
    str | None,
    Header(description="The ETag that GET answered: the version that it is written against."),
]


@router.get(
    "/teams",
    operation_id="listTeams",
    summary="How do teams stand?",
    responses=answers(Teams),
)
async def list_teams(broker: At, _: Viewer) -> Response:
    """Return every team that has a policy, leases or waiters: its policy, and what it has."""
    rows = [asdict(team) for team in await broker.client.teams()]
    return Response(dumped({"teams": rows}), media_type=JSON)


@router.get(
    "/policy/teams",
    operation_id="getTeamPolicies",
    summary="What are the quotas of teams?",
    responses=answers(TeamPolicies, **TAGGED),
)
async def get_policies(request: Request, broker: At, _: Viewer) -> Response:
    """Return the policies of all teams; the ETag is the policy's version, for `If-Match` of PUT."""
    body = await _policies(broker)
    tag = f'"{body["version"]}"'
    if {tag, "*"} & known_tags(request):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
    return _tagged(body)


@router.put(
    "/policy/teams",
    operation_id="setTeamPolicies",
    summary="Set the quotas of all teams.",
    responses=answers(TeamPolicies, **TAGGED) | WITH_BODY | errors("safe_mode") | OTHER_VERSION,
)
async def put_policies(
    body: TeamsBody, broker: At, who: Operator, if_match: IfMatch = None
) -> Response:
    """Set the policies of all teams, all or none; with `If-Match` against that version alone."""
    note(audit=True, teams=" ".join(body.teams), version=if_match)
    version = _version(if_match)
    teams = {name: asdict(policy) for name, policy in body.teams.items()}
    if broker.settings.safe_mode:
        raise error_for("safe_mode")
    try:
        await broker.client.set_teams(teams, by=_by(who), version=version)
    except Conflict as error:
        raise HTTPException(HTTPStatus.PRECONDITION_FAILED, str(error)) from None
    return _tagged(await _policies(broker))


def _by(who: Principal) -> str | None:
    """Return the name under which a change is logged; None: this replica's."""
    return who.name or None


def _version(if_match: str | None) -> int | None:
    """Return the version that a request is written against; None: any.

    Raises:
        HTTPException: it is no ETag of a policy, which no version matches.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    found = VERSION.fullmatch(if_match.strip())
    if found is None:
        raise HTTPException(HTTPStatus.PRECONDITION_FAILED, "If-Match is no ETag of this policy")
    return int(found[1])


async def _policies(broker: Broker) -> dict[str, Any]:
    pool = await broker.client.pool()
    if not pool.ready:
        raise error_for("not_ready")
    teams = {x.name: asdict(policy_in(x)) for x in await broker.client.teams() if x.listed}
    return {"version": pool.policy_version, "teams": teams}


def _tagged(body: dict[str, Any]) -> Response:
    headers = {"ETag": f'"{body["version"]}"'}
    return Response(dumped(body), media_type=JSON, headers=headers)
