"""Metrics of this replica and of the pool, as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import Response

from agent_sdk.errors import Denied, LeaseError
from agent_sdk.keys import DEFAULT_TEAM
from broker.hooks.registry import HooksSeen
from broker.http.auth import Viewer
from broker.http.document.described import DescribedRoute
from broker.http.openapi import EVERYWHERE
from broker.live.slices import PIECE, Turns, answer
from broker.maintenance.store_check import memory_of
from broker.metrics.pool import PoolReading
from broker.replica import At

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent_sdk.state.snapshot import PoolStatus
    from agent_sdk.teams.status import TeamStatus
    from broker.replica import Broker

router = APIRouter(responses=EVERYWHERE, route_class=DescribedRoute, tags=["health"])


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Prometheus text.",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(broker: At, _: Viewer) -> Response:
    """Return this replica's counters, and the numbers that all replicas share."""
    try:
        seen = await _reading(broker)
    except LeaseError:
        seen = None

    async def pieces() -> AsyncIterator[bytes]:
        turns, parts, size = Turns(), list[bytes](), 0
        for part in broker.metrics.parts(seen, broker.reporter.sample):
            parts.append(part)
            size += len(part)
            if size >= PIECE:
                yield b"".join(parts)
                parts, size = [], 0
            await turns.pause()
        yield b"".join(parts)

    return await answer(pieces(), "text/plain; version=0.0.4; charset=utf-8")


async def _reading(broker: Broker) -> PoolReading:
    """Read the pool: all of it in little, and of so many devices and hosts everything."""
    client, most = broker.client, broker.settings.metrics_devices
    pool = await client.pool()
    devices, hosts = await client.device_list(), await client.host_list()
    shown = [each.uuid for each in devices[:most]]
    found = sorted(await client.devices_of(shown), key=lambda d: (d.host, d.index, d.uuid))
    left_out = {"devices": max(0, len(devices) - most), "hosts": max(0, len(hosts) - most)}
    teams = await _teams(broker, pool)
    return PoolReading(
        pool,
        found,
        await client.hosts_of(hosts[:most]),
        await client.waiting_since() if pool.waiting else None,
        Counter(each.state for each in devices),
        left_out,
        await _hooks(broker),
        teams,
        await client.usage_totals(sorted({DEFAULT_TEAM, *(team.name for team in teams)})),
        await memory_of(client.redis),
    )


async def _teams(broker: Broker, pool: PoolStatus) -> list[TeamStatus]:
    """Read the teams that have series: other names are any that a client makes up."""
    if not pool.teams:
        return []
    return [x for x in await broker.client.teams() if x.listed or x.name == DEFAULT_TEAM]


async def _hooks(broker: Broker) -> HooksSeen:
    """Read the hooks, or none where the store denies it: the pool's own figures go on."""
    try:
        return await broker.hooks.seen()
    except Denied:
        return HooksSeen()
