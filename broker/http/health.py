"""Health of this process: whether it lives, and whether it can grant leases."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from agent_sdk.errors import (
    CODES,
    LeaseError,
)
from agent_sdk.state.snapshot import pool_id
from broker import __version__
from broker.http.document.described import DescribedRoute
from broker.http.document.models import Liveness, NotReady, Ready
from broker.http.openapi import EVERYWHERE, NO_KEY, answers
from broker.maintenance.store_check import problem_of
from broker.replica import At, Broker

router = APIRouter(responses=EVERYWHERE, route_class=DescribedRoute, tags=["health"])


@router.get(
    "/health", operation_id="getHealth", summary="Is this process alive?", openapi_extra=NO_KEY
)
@router.post("/health", include_in_schema=False)
async def health(broker: At) -> Liveness:
    """Tell that the process lives: 200 also when Redis is down. No other process is asked."""
    seen = broker.ticker.pool
    answer: Liveness = {
        "status": "ok",
        "safe_mode": broker.safe_mode,
        "redis": "up" if broker.ticker.problem is None else "down",
        "pool": broker.settings.sdk.pool,
        "pool_id": pool_id(seen.epoch) if seen else None,
        "version": __version__,
        "replica": broker.replica,
    }
    if broker.worker.number:
        answer["worker"] = broker.worker.number
    return answer


@router.get(
    "/ready",
    operation_id="getReadiness",
    summary="Can this process grant leases?",
    openapi_extra=NO_KEY,
    responses=answers(Ready) | {503: {"model": NotReady, "description": "Not now."}},
)
async def ready(broker: At) -> JSONResponse:
    """Tell whether leases can be granted, SAFE_MODE apart: asks Redis; else 503 with the reason."""
    if reason := await broker.readiness.ask(lambda: _unready(broker)):
        return JSONResponse({"ready": False, "reason": reason}, 503, {"Retry-After": "1"})
    return JSONResponse({"ready": True})


async def _unready(broker: Broker) -> str | None:
    """Return the obstacle to leases: the server, the scripts, the pool; None: there is none."""
    if problem := await problem_of(broker.client.redis):
        return problem
    try:
        moment = await broker.client.reap()
        pool = await broker.client.pool()
    except LeaseError as error:
        return str(error)
    if pool.closed_until_ms > moment.now_ms:
        return CODES["closed"].says
    if not broker.mode_decided:
        return "our SAFE_MODE is not in the pool's policy yet"
    return broker.ticker.problem  # as /health tells it, a moment later
