"""The pool as the documented endpoints show it: its GPUs, its leases, its queue."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from agent_sdk.errors import (
    BrokerUnavailable,
    OutcomeUnknown,
)
from broker.http.auth import Viewer, token_for
from broker.http.openapi import EVERYWHERE
from broker.replica import At
from broker.serializers import device_json, lease_json

router = APIRouter(responses=EVERYWHERE)


@router.get("/orchestrator/gpu/info", include_in_schema=False)
@router.get("/gpu/info", summary="Which GPUs are there, and how are they?")
async def gpu_info(broker: At, who: Viewer) -> dict[str, Any]:
    """Return every device of the pool as its host last reported it, with the processes on it."""
    sample = broker.reporter.sample
    try:
        devices = await broker.client.devices()
        now_ms, hosts = (await broker.client.pool()).now_ms, await broker.client.hosts()
        alive = [host for host in hosts if host.alive(now_ms)]
        return device_json.info(devices, sample, alive, whole=who.is_at_least("operator"))
    except (BrokerUnavailable, OutcomeUnknown) as error:
        return device_json.info((), sample) | {"message": str(error)}


@router.get("/allocations", summary="Which leases live?")
async def allocations(broker: At, who: Viewer) -> dict[str, Any]:
    """Return every living lease, by token; of leases of other keys only the token's beginning."""
    pool = await broker.client.pool()
    devices = {device.uuid: device for device in await broker.client.devices()}
    leases = await broker.client.leases()
    shown = [lease_json.known(x, devices, pool.now_ms) | token_for(who, x) for x in leases]
    return {"allocations": {x["token"]: x for x in shown}}


@router.get("/queue", summary="Which requests wait?")
async def queue(broker: At, who: Viewer) -> dict[str, Any]:
    """Return every waiter, in order: of two that could use the same device the earlier is first."""
    pool = await broker.client.pool()
    found = await broker.client.queue()
    shown = [lease_json.waiter(x, pool.now_ms) | token_for(who, x) for x in found]
    return {"waiting": len(found), "queue": shown}
