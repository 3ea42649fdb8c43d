"""Use over HTTP: sums of a period by group, and finished leases one by one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import AfterValidator

from agent_sdk.errors import error_for
from agent_sdk.keys import EVENT_ID
from broker.http.auth import Viewer, token_for
from broker.http.document.described import DescribedRoute
from broker.http.openapi import EVERYWHERE, MALFORMED, answers
from broker.http.requests import CURSOR, MOST_ROWS, EventId, OfAgent, OfHost, Team, readable
from broker.live.slices import after as end_of
from broker.live.slices import answer, dumped, listed
from broker.replica import At
from broker.serializers import usage_json
from broker.serializers.usage_models import PastLeases, UsageOfPeriod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from agent_sdk.usage.history import FinishedLease

router = APIRouter(responses=EVERYWHERE | MALFORMED, route_class=DescribedRoute, tags=["pool"])

PAGE: Final = 100
"""Finished leases of an answer for which no number is asked."""

OLDER, NEWER = "older/", "newer/"
"""Begins of cursors: a page goes back from the end, or on from an id."""

_CURSOR: Final = re.compile(f"(?:{OLDER}|{NEWER}){EVENT_ID.pattern}")


def _read(cursor: str) -> None:
    if not _CURSOR.fullmatch(cursor):
        raise ValueError(cursor)


By = Annotated[
    str,
    Query(
        max_length=64,
        pattern="^[a-z,]*$",
        description="Words by commas: day, model, and either team and agent, or host; none: a sum.",
    ),
]

Since = Annotated[
    str,
    Query(max_length=40, description="30d, 12h or 90m before now, 2026-11-30, 2026-11-30T12:00."),
]

Until = Annotated[
    str | None, Query(max_length=40, description="Likewise; a day is included; none: now.")
]

Daily = Annotated[bool, Query(description="Also the GPU-hours of each day of each group.")]

Most = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows.")]

After = Annotated[
    EventId | None,
    Query(description="`last` of an earlier answer: only what came after it, the oldest first."),
]

Cursor = Annotated[str | None, AfterValidator(readable(_read)), CURSOR]

OfTeam = Annotated[Team | None, Query(description="Only those of this team.")]

Outcome = Annotated[
    Literal["released", "expired", "revoked", "preempted"] | None,
    Query(description="Only those that ended so."),
]

EndedSince = Annotated[
    str | None,
    Query(max_length=40, description="Only those that ended then or later; as of /usage."),
]


@router.get(
    "/usage",
    operation_id="getUsage",
    summary="Who used what?",
    responses=answers(UsageOfPeriod),
)
async def usage(
    broker: At,
    _: Viewer,
    by: By = "team,agent",
    since: Since = "30d",
    until: Until = None,
    daily: Daily = False,
) -> Response:
    """Return the use of GPUs in a period, by group, the most GPU-hours first.

    What has ended counts by whole days of UTC, what runs now exactly.
    """
    words = [word for word in by.split(",") if word]
    found = await broker.client.usage(by=words, since=since, until=until, daily=daily)
    head = dumped(usage_json.usage(found)).removesuffix("}")

    async def rows() -> AsyncIterator[str]:
        for row in found.rows:
            yield dumped(usage_json.row(row))

    return await answer(listed(f'{head},"rows":[', rows(), lambda: "]}"))


@router.get(
    "/history",
    operation_id="listPastLeases",
    summary="Which leases are over?",
    responses=answers(PastLeases),
)
async def history(
    broker: At,
    who: Viewer,
    agent: OfAgent = None,
    team: OfTeam = None,
    host: OfHost = None,
    outcome: Outcome = None,
    since: EndedSince = None,
    limit: Most = PAGE,
    after: After = None,
    cursor: Cursor = None,
) -> Response:
    """Return the last finished leases, the newest first; of other keys' the token's beginning.

    With `after` it returns those that came after an id, the oldest first, for programs that follow.
    """
    if after and cursor:
        raise error_for("bad_request", "after begins a reading and cursor goes on: name one")
    forward = bool(after) or (cursor or "").startswith(NEWER)
    at = after or (cursor or "").partition("/")[2]
    found = await broker.client.history(
        after=at if forward else "",
        before="" if forward else at,
        limit=limit,
        agent=agent,
        team=team,
        host=host,
        outcome=outcome,
        since=since,
    )
    shown: Iterable[FinishedLease] = found.leases if forward else reversed(found.leases)
    beyond = (NEWER + found.last) if forward else (OLDER + found.first)
    more: dict[str, Any] = {
        "next": beyond if found.more else None,
        "last": found.last,
    }

    async def rows() -> AsyncIterator[str]:
        for lease in shown:
            yield dumped(usage_json.finished(lease) | token_for(who, lease))

    return await answer(listed('{"leases":[', rows(), lambda: f"]{end_of(more)}"))
