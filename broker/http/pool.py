"""Lists of the pool, as the documented endpoints show them: GPUs, hosts, leases, waiters."""

from __future__ import annotations

from bisect import bisect_right
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import AfterValidator

from agent_sdk.errors import BrokerUnavailable, OutcomeUnknown
from agent_sdk.keys import HOST
from agent_sdk.state.lists import ShownState
from agent_sdk.state.queue import matches
from broker.http.auth import Viewer, token_for
from broker.http.document.described import DescribedRoute
from broker.http.etag import TAGGED, tagged_list
from broker.http.openapi import EVERYWHERE, MALFORMED, answers
from broker.http.requests import CURSOR, Limit, OfAgent, OfHost, readable
from broker.live.slices import JSON, after, answer, dumped, listed, paged, parts_of
from broker.replica import At
from broker.serializers import device_json, lease_json
from broker.serializers.device_models import GPU_INFO
from broker.serializers.lease_models import Allocations, Hosts, Queue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.lists import DeviceEntry, LeaseEntry
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import HostStatus, PoolStatus
    from broker.api_keys import Principal
    from broker.replica import Broker

router = APIRouter(responses=EVERYWHERE | MALFORMED, route_class=DescribedRoute, tags=["pool"])

LAST: Final = "\U0010ffff"
"""Greater than every name."""

State = Annotated[ShownState | None, Query(description="Only those in this state.")]

Alive = Annotated[
    Literal["alive", "away"] | None, Query(description="Only those that report, or do not.")
]


def _place(cursor: str) -> tuple[str, int, str]:
    """Return the place of a device in the list."""
    host, index, uuid = cursor.split("/", 2)
    return host, int(index), uuid


def _after(each: DeviceEntry) -> str:
    """Return the cursor after a device."""
    return f"{each.host}/{each.number}/{each.uuid}"


def _name(cursor: str) -> str:
    if not HOST.fullmatch(cursor):
        raise ValueError(cursor)
    return cursor


DeviceCursor = Annotated[str | None, AfterValidator(readable(_place)), CURSOR]

HostCursor = Annotated[str | None, AfterValidator(readable(_name)), CURSOR]


@router.get("/orchestrator/gpu/info", include_in_schema=False)
@router.get(
    "/gpu/info",
    operation_id="listGpus",
    summary="Which GPUs are there, and how are they?",
    responses=answers(GPU_INFO, **TAGGED),
)
async def gpu_info(
    request: Request,
    broker: At,
    who: Viewer,
    host: OfHost = None,
    state: State = None,
    limit: Limit = None,
    cursor: DeviceCursor = None,
) -> Response:
    """Return every device of the pool as its host last reported it, with the processes on it."""
    client = broker.client
    try:
        entries = await client.device_list(host, state)
        begin = bisect_right(entries, (*_place(cursor), LAST)) if cursor else 0
        found, more = paged(entries, begin, limit, _after)
        pool = await client.pool()
        hosts = await (client.hosts() if host is None else client.hosts_of([host]))
        rows = _Rows(broker, pool, whole=who.is_at_least("operator"))
        alive = [each for each in hosts if each.alive(pool.now_ms)]
        body = listed('{"gpus":[', rows.of(found), lambda: rows.tail(alive, more))
        return await tagged_list(request, body)
    except (BrokerUnavailable, OutcomeUnknown) as error:
        said = device_json.info(broker.reporter.sample, any_rows=False, nvml_rows=False)
        return Response(dumped({"gpus": []} | said | {"message": str(error)}), media_type=JSON)


class _Rows:
    """Rows of `/gpu/info`, and what they have in common.

    Args:
        broker: the replica.
        pool: its policy.
        whole: with all tokens.
    """

    def __init__(self, broker: Broker, pool: PoolStatus, *, whole: bool) -> None:
        self._broker = broker
        self._pool = pool
        self._named = str if whole else lease_json.masked
        self._any = self._nvml = False

    async def of(self, entries: Sequence[DeviceEntry]) -> AsyncIterator[str]:
        """Yield each device's row."""
        for part in parts_of(entries):
            devices = await self._broker.client.devices_of([each.uuid for each in part])
            for device in sorted(devices, key=lambda d: (d.host, d.index, d.uuid)):
                row = device_json.row(device, self._named, self._pool.free_mb(device))
                self._any = True
                self._nvml = self._nvml or device_json.enriched(row)
                yield dumped(row)

    def tail(self, hosts: Sequence[HostStatus], more: dict[str, Any]) -> str:
        """Return the end of the body, after all rows."""
        said = device_json.info(
            self._broker.reporter.sample, hosts, any_rows=self._any, nvml_rows=self._nvml
        )
        return f"]{after(said | more)}"


@router.get(
    "/hosts",
    operation_id="listHosts",
    summary="Which machines report devices?",
    responses=answers(Hosts),
)
async def hosts(
    broker: At,
    _: Viewer,
    host: OfHost = None,
    state: Alive = None,
    limit: Limit = None,
    cursor: HostCursor = None,
) -> Response:
    """Return every host that the pool knows, with the age of its last report."""
    client, now_ms = broker.client, (await broker.client.pool()).now_ms
    found = await (client.hosts() if host is None else client.hosts_of([host]))
    if state is not None:
        found = [each for each in found if each.alive(now_ms) == (state == "alive")]
    begin = bisect_right(found, cursor, key=lambda each: each.host) if cursor else 0
    shown, more = paged(found, begin, limit, lambda each: each.host)

    async def rows() -> AsyncIterator[str]:
        for each in shown:
            yield dumped(lease_json.host(each, now_ms))

    return await answer(listed('{"hosts":[', rows(), lambda: f"]{after(more)}"))


Kind = Annotated[
    Literal["active", "cpu"] | None, Query(description="Only those on a GPU, or on the CPU.")
]

Waits = Annotated[
    Literal["waiting", "offered"] | None, Query(description="Only those in this state.")
]

FenceCursor = Annotated[str | None, AfterValidator(readable(int)), CURSOR]


def _rank(cursor: str) -> tuple[int, int]:
    """Return a rank, and how many waiters of that rank were shown."""
    rank, count = cursor.split(".")
    return int(rank), int(count)


RankCursor = Annotated[str | None, AfterValidator(readable(_rank)), CURSOR]


@router.get(
    "/allocations",
    operation_id="listLeases",
    summary="Which leases live?",
    responses=answers(Allocations),
)
async def allocations(
    broker: At,
    who: Viewer,
    host: OfHost = None,
    agent: OfAgent = None,
    state: Kind = None,
    limit: Limit = None,
    cursor: FenceCursor = None,
) -> Response:
    """Return every living lease, by token; of leases of other keys only the token's beginning."""
    question = (agent, host, state)
    lists = broker.listed.get(question) if cursor else None
    if lists is None:
        lists = await broker.client.lease_list(agent, host, state)
        if limit is not None:
            broker.listed.put(question, lists)
    begin = (int(cursor), LAST) if cursor else (-1, "")
    rest = [each[bisect_right(each, begin) :] for each in lists]
    found: Iterable[LeaseEntry] = merge(*rest)
    more: dict[str, Any] = {}
    if limit is not None:
        shown = list(islice(found, limit))
        ends = sum(map(len, rest)) > len(shown)
        total = sum(map(len, lists))
        more = {"total": total, "next": str(shown[-1].fence) if ends else None}
        found = shown
    return await answer(
        listed('{"allocations":{', _leases(broker, who, found), lambda: f"}}{after(more)}")
    )


async def _leases(
    broker: Broker, who: Principal, entries: Iterable[LeaseEntry]
) -> AsyncIterator[str]:
    """Yield each lease that still lives, as a member of an object."""
    client = broker.client
    devices: dict[str, DeviceStatus] = {}
    now_ms = (await client.pool()).now_ms
    for part in parts_of(entries):
        leases = await client.leases_of([each.token for each in part])
        held = {uuid for x in leases for uuid, _ in x.devices if uuid not in devices}
        found = await client.devices_of(held)
        devices |= {device.uuid: device for device in found}
        for lease in leases:
            said = lease_json.known(lease, devices, now_ms) | token_for(who, lease)
            yield f"{dumped(said['token'])}:{dumped(said)}"


@router.get(
    "/queue", operation_id="listWaiters", summary="Which requests wait?", responses=answers(Queue)
)
async def queue(
    broker: At,
    who: Viewer,
    host: OfHost = None,
    agent: OfAgent = None,
    state: Waits = None,
    limit: Limit = None,
    cursor: RankCursor = None,
) -> Response:
    """Return every waiter, in order: of two that could use the same device the earlier is first."""
    now_ms = (await broker.client.pool()).now_ms
    waiters = await broker.client.queue()
    found = [each for each in waiters if matches(each, agent, host, state)]
    begin = 0
    if cursor:
        rank, count = _rank(cursor)
        begin = sum(each.rank < rank for each in found)
        begin = min(begin + count, sum(each.rank <= rank for each in found))

    def place_after(waiter: WaiterStatus) -> str:
        end = found.index(waiter) + 1
        return f"{waiter.rank}.{sum(each.rank == waiter.rank for each in found[:end])}"

    shown, more = paged(found, begin, limit, place_after)

    async def rows() -> AsyncIterator[str]:
        for each in shown:
            yield dumped(lease_json.waiter(each, now_ms) | token_for(who, each))

    head = f'{{"waiting":{len(found)},"queue":['
    return await answer(listed(head, rows(), lambda: f"]{after(more)}"))
