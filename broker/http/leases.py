"""Leases over HTTP, thin over the same client that agents use."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from agent_sdk import AsyncLease
from agent_sdk.errors import CODES, SafeMode, StillWaiting, error_for
from agent_sdk.keys import DEFAULT_TEAM, TOKEN
from agent_sdk.protocol.messages import ANY
from agent_sdk.protocol.sizes import meant_gib
from agent_sdk.state.explain import Explanation
from agent_sdk.state.queue import WaiterStatus
from agent_sdk.state.snapshot import LeaseStatus
from broker.api_keys import Principal, owner_of, owns
from broker.http.auth import AgentKey, Viewer
from broker.http.delivery import delivery_of
from broker.http.disconnect import HUNG_UP, HungUpError, unless_ended
from broker.http.document.models import EXPLANATION
from broker.http.hot_routes import FastJSON
from broker.http.ignored import NamesIgnored
from broker.http.openapi import EVERYWHERE, MALFORMED, WITH_BODY, answers, errors
from broker.http.requests import LeaseBody, ReleaseBody, RenewBody
from broker.logs import SHOWN, note
from broker.replica import At, Broker, broker_of
from broker.serializers import lease_json
from broker.serializers.lease_models import (
    LeaseGrant,
    LivingLease,
    PlaceInQueue,
    ReleasedLease,
    RenewedLease,
    SafeModeAnswer,
    Waiter,
)

log = logging.getLogger(__name__)


router, hot = (
    APIRouter(responses=EVERYWHERE, route_class=NamesIgnored, tags=["leases"]) for _ in range(2)
)
"""Routes, and the frequent ones among them: `HotRoutes` answers their ordinary requests."""


@hot.post(
    "/lease",
    operation_id="acquireLease",
    summary="Get a lease.",
    responses=answers(LeaseGrant | SafeModeAnswer)
    | WITH_BODY
    | {202: {"model": PlaceInQueue, "description": CODES["waiting"].says}}
    | errors(
        "no_capacity",
        "agent_cap",
        "limit",
        "team_unknown",
        "team_limit",
        "never_fits",
        "host_unknown",
        "model_unknown",
        "draining",
        "conflict",
        "expired",
        "revoked",
        "preempted",
        "released",
        "cancelled",
        "timed_out",
        "store_unavailable",
        "store_full",
        "closed",
        "not_ready",
        "outcome_unknown",
    ),
)
async def lease(body: LeaseBody, request: Request, who: AgentKey) -> JSONResponse:
    """Reserve GPU memory or whole GPUs for a time; without room, a CPU lease or 409, as asked.

    With `wait_s` it waits in the queue first; after that time it answers 202 and holds the place
    for 10 s: repeat the request with the token of the answer.
    """
    broker = broker_of(request)
    note(agent=body.agent, token=body.token)
    if not who.speaks_for(body.agent):
        raise error_for("forbidden", f"this key may not ask in the name of {body.agent}")
    team = who.team_for(body.team) or DEFAULT_TEAM
    denied: SafeModeAnswer = {"granted": False, "note": "SAFE_MODE", "agent": body.agent}
    if broker.settings.safe_mode:
        return JSONResponse(denied)
    known = await broker.client.lookup(body.token) if body.token else None
    if isinstance(known, (LeaseStatus, WaiterStatus)) and not owns(who, known):
        raise error_for("conflict")
    host, ttl_s = _host_and_ttl(body, known, broker)
    try:
        asked = broker.client.acquire(
            body.agent,
            memory_mb=body.min_memory_mb or 0,
            devices=body.devices,
            exclusive=body.exclusive,
            ttl_s=ttl_s,
            priority=body.priority,
            max_hold_s=body.max_hold_s or 0,
            host=host,
            model=body.model,
            placement=body.placement,
            on_unavailable="cpu" if body.on_unavailable == "cpu" else "raise",
            token=body.token,
            wait_s=body.wait_s,
            keep_place=body.wait_s > 0,
            owner=who.name,
            team=team,
            preemptible=body.preemptible,
            yields=body.yields,
            after=body.after,
        )
        got = await (unless_ended(request, broker.stopping, asked) if body.wait_s else asked)
    except HungUpError:
        note(reason="hung_up")
        return JSONResponse(None, HUNG_UP)
    except SafeMode:
        note(reason="safe_mode")
        return JSONResponse(denied)
    except StillWaiting as error:
        note(token=error.token, reason=error.code)
        at = f"{request.scope.get('root_path', '')}/lease/{error.token}"
        where = {"Location": at, "Retry-After": "1"}
        return JSONResponse(lease_json.still_waiting(error, body.agent, team), 202, where)
    gpus = ",".join(device.uuid for device in got.devices)
    note(token=got.token, fence=got.fence, gpus=gpus or "cpu", reason=got.reason)
    if got.local:  # the client's own fallback: over HTTP, an absent broker is an error
        raise error_for(got.reason or "store_unavailable")
    if body.token is None:  # a client repeats or releases a token of its own
        delivery_of(request).otherwise(lambda: _take_back(broker, got))
    doubt = meant_gib(memory_mb := body.min_memory_mb or 0, str(memory_mb * 1024))
    return FastJSON(lease_json.granted(got, team) | ({"hint": doubt} if doubt else {}))


def _host_and_ttl(
    body: LeaseBody, known: LeaseStatus | WaiterStatus | str | None, broker: Broker
) -> tuple[str, float]:
    """Return the body's host and TTL; else those of the repeated request; else our own."""
    host, ttl_s = broker.local_host, float(broker.settings.lease_ttl_s)
    if isinstance(known, (LeaseStatus, WaiterStatus)):
        host = "any" if known.asked_host == ANY else known.asked_host
        ttl_s = known.ttl_ms / 1000
    return body.host or host, ttl_s if body.ttl_s is None else body.ttl_s


def _take_back(broker: Broker, lease: AsyncLease) -> None:
    """Give a lease back that no client knows: the answer with its token was not taken."""
    log.info("lease %s: its client hung up before it read of it: given back", lease.token[:SHOWN])
    broker.client.abandon(lease.token)


@hot.post(
    "/renew",
    operation_id="renewLease",
    summary="Keep a lease alive.",
    responses=answers(RenewedLease)
    | WITH_BODY
    | errors(
        "unknown_token",
        "expired",
        "revoked",
        "preempted",
        "released",
        "superseded",
        "cancelled",
        "timed_out",
    ),
)
async def renew(body: RenewBody, request: Request, who: AgentKey) -> JSONResponse:
    """Renew a lease, and return its end; 409 `lost` with the reason, 404 when it is unknown."""
    note(token=body.token, fence=body.fence)
    renewal = await broker_of(request).client.renew(
        body.token, body.ttl_s, fence=body.fence, owner=owner_of(who)
    )
    answer: RenewedLease = {
        "renewed": True,
        "token": body.token,
        "expires_at": None if renewal.endless else renewal.expires_at_ms / 1000,
        "expires_in_s": None if renewal.endless else renewal.remaining_ms / 1000,
        "notices": list(renewal.notices),
        "preempt_in_s": None,
        "wanted": None,
    }
    if renewal.preempt_at is not None:
        answer["preempt_in_s"] = round(max(0.0, renewal.preempt_at - time.time()), 3)
    if renewal.wanted is not None:
        answer["wanted"] = {"agent": renewal.wanted[0], "memory_mb": renewal.wanted[1]}
    return FastJSON(answer)


@hot.post(
    "/release",
    operation_id="releaseLease",
    summary="Give a lease back.",
    responses=answers(ReleasedLease) | WITH_BODY | errors("unknown_token"),
)
async def release(body: ReleaseBody, request: Request, who: AgentKey) -> JSONResponse:
    """Give a lease back; 404 when it is unknown, was released before, or has expired."""
    note(token=body.token)
    if not await broker_of(request).client.release(
        _possible(body.token), refuse_late=body.refuse_late, owner=owner_of(who)
    ):
        raise error_for("unknown_token")
    answer: ReleasedLease = {"released": True, "token": body.token}
    return FastJSON(answer)


@router.get(
    "/lease/{token}",
    operation_id="getLease",
    summary="How does a lease stand?",
    responses=MALFORMED | errors("unknown_token"),
)
async def get_lease(token: str, broker: At, who: AgentKey) -> LivingLease | Waiter:
    """Return a living lease, or the wait for one; 404 when this token is not yours, or unknown."""
    found = await _own(broker, who, token)
    pool = await broker.client.pool()
    if isinstance(found, WaiterStatus):
        return lease_json.waiter(found, pool.now_ms)
    held = await broker.client.devices_of(uuid for uuid, _ in found.devices)
    return lease_json.known(found, {device.uuid: device for device in held}, pool.now_ms)


@router.get(
    "/lease/{token}/explain",
    operation_id="explainLease",
    summary="Why does it wait?",
    response_model=EXPLANATION,
    responses=MALFORMED
    | errors(
        "unknown_token", "expired", "released", "revoked", "preempted", "cancelled", "timed_out"
    ),
)
async def explain(token: str, broker: At, who: AgentKey) -> dict[str, Any]:
    """Return each device's reason, the waiters ahead, what would fit; 404 when unknown."""
    await _own(broker, who, token)
    return _explained(await broker.client.explain(token), who)


@router.post(
    "/explain",
    operation_id="explainRequest",
    summary="What would become of a request?",
    response_model=EXPLANATION,
    responses=WITH_BODY,
)
async def explain_request(body: LeaseBody, broker: At, who: Viewer) -> dict[str, Any]:
    """Return the same for a request that is not made, or was refused: the body of POST /lease."""
    host, ttl_s = _host_and_ttl(body, None, broker)
    found = await broker.client.explain_request(
        body.agent,
        memory_mb=body.min_memory_mb or 0,
        devices=body.devices,
        exclusive=body.exclusive,
        ttl_s=ttl_s,
        max_hold_s=body.max_hold_s or 0,
        host=host,
        model=body.model,
        priority=body.priority,
        owner=who.name,
        team=who.team_for(body.team) or DEFAULT_TEAM,
    )
    if broker.settings.safe_mode:  # whatever the pool says: as in POST /lease
        found = lease_json.in_safe_mode(found)
    return _explained(found, who)


async def _own(broker: Broker, who: Principal, token: str) -> LeaseStatus | WaiterStatus:
    """Return the lease or the wait of this token, if it is this principal's.

    Raises:
        UnknownToken: there is none, or it is another principal's.
    """
    found = await broker.client.lookup(_possible(token))
    if found is None or isinstance(found, str) or not owns(who, found):
        raise error_for("unknown_token")
    return found


def _explained(found: Explanation, who: Principal) -> dict[str, Any]:
    """Return an explanation with a masked token: the owner of the lease in it is not looked up."""
    if who.is_at_least("operator"):
        return asdict(found)
    end = found.first_end
    return asdict(
        replace(found, first_end=end and replace(end, token=lease_json.masked(end.token)))
    )


def _possible(token: str) -> str:
    """Return the token; raise for one that no lease can have, as for an unknown one."""
    if not TOKEN.fullmatch(token):
        raise error_for("unknown_token")
    return token
