"""Metrics of this replica and of the pool, as Prometheus reads them."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from agent_sdk.errors import (
    LeaseError,
)
from broker.http.auth import Viewer
from broker.http.openapi import EVERYWHERE
from broker.metrics import PoolReading
from broker.replica import At

router = APIRouter(responses=EVERYWHERE)


@router.get(
    "/metrics",
    summary="Prometheus text.",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(broker: At, _: Viewer) -> Response:
    """Return this replica's counters, and the numbers that all replicas share."""
    client = broker.client
    try:
        pool = await client.pool()
        waiters = await client.queue() if pool.waiting else ()
        seen = PoolReading(pool, await client.devices(), await client.hosts(), waiters)
    except LeaseError:
        seen = None
    text = broker.metrics.text(seen, broker.reporter.sample)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
