"""Health of this process: whether it lives, and whether it can grant leases."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from agent_sdk.errors import (
    CODES,
    LeaseError,
)
from agent_sdk.state.snapshot import pool_id
from broker import __version__
from broker.http.openapi import EVERYWHERE
from broker.maintenance.store_check import problem_of
from broker.replica import At, Broker

router = APIRouter(responses=EVERYWHERE)


@router.get("/health", summary="Is this process alive?")
@router.post("/health", include_in_schema=False)
async def health(broker: At) -> dict[str, Any]:
    """Tell that the process lives: 200 also when Redis is down. No other process is asked."""
    seen = broker.ticker.pool
    return {
        "status": "ok",
        "safe_mode": broker.safe_mode,
        "redis": "up" if broker.ticker.problem is None else "down",
        "pool": broker.settings.sdk.pool,
        "pool_id": pool_id(seen.epoch) if seen else None,
        "version": __version__,
        "replica": broker.replica,
    } | ({"worker": number} if (number := broker.worker.number) else {})


@router.get(
    "/ready", summary="Can this process grant leases?", responses={503: {"description": "Not now."}}
)
async def ready(broker: At) -> JSONResponse:
    """Tell whether leases can be granted: asks Redis; 503 with the reason when they cannot."""
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
