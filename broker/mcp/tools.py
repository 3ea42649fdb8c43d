"""Tools of an agent: few, and named for what it wants."""

from __future__ import annotations

from heapq import merge
from typing import TYPE_CHECKING, Annotated, Any, Final

from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver import Context, Resolve
from pydantic import Field

from agent_sdk.errors import error_for
from agent_sdk.request import MOST_DEVICES, MOST_MB
from broker.api_keys import ANYBODY, Principal, Role
from broker.mcp.confirmation import Confirmation, asked_of_person, require_confirmed
from broker.mcp.leases import AgentRequest, Leases
from broker.mcp.models import (
    ExplainResult,
    LeaseResult,
    LeasesResult,
    ReleasedResult,
    StatusResult,
    UsageResult,
)
from broker.mcp.past_use import past_use
from broker.mcp.reading import MOST_ROWS, explained, lease_view, status, usage
from broker.mcp.refusals import refused
from broker.mcp.waits import PendingLease
from broker.serializers.lease_json import in_safe_mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import AsyncLease
    from agent_sdk.request import LeaseOptions
    from agent_sdk.usage.history import FinishedLease

Ctx = Context[Any, Any]

ROLES: Final[dict[str, Role]] = {
    "gpu_status": "viewer",
    "gpu_explain": "viewer",
    "gpu_acquire": "agent",
    "gpu_extend": "agent",
    "gpu_release": "agent",
    "gpu_leases": "agent",
    "gpu_usage": "agent",
    "gpu_run": "agent",
}
"""Least role for each tool."""

MemoryMb = Annotated[
    int | None,
    Field(ge=0, le=MOST_MB, description="MiB on each GPU; 0: the pool's default for a lease"),
]
Gpus = Annotated[
    int, Field(ge=1, le=MOST_DEVICES, description="more than 1: whole GPUs of one host")
]
Exclusive = Annotated[bool, Field(description="alone on the GPU")]
Host = Annotated[
    str | None, Field(description="a host's name, or any; null: where this server's GPUs are")
]
Model = Annotated[str | None, Field(description="exact name of a GPU model; null: any")]
Priority = Annotated[int, Field(ge=0, le=9, description="in the queue, 9 first")]
Team = Annotated[
    str | None,
    Field(description="the team whose quota it counts for; null: the one of your key or server"),
]
Preemptible = Annotated[
    bool, Field(description="true: it may be taken back at any time, with a notice before")
]
Yields = Annotated[bool, Field(description="true: you are told when another request wants it")]
Agent = Annotated[
    str | None, Field(description="the name under which you are shown; null: the server's for you")
]
WaitS = Annotated[
    float,
    Field(ge=0, description="seconds that this call waits, at most 15; 0: now or not at all"),
]
HoldS = Annotated[float | None, Field(ge=1, le=604800, description="seconds for which you need it")]
Ticket = Annotated[str | None, Field(description="of an earlier answer: ask again for that wait")]
Confirm = Annotated[bool, Field(description="true: the person you work for has agreed to the size")]
Since = Annotated[
    str, Field(max_length=40, description="of ended leases: 12h or 7d before now, or 2026-11-30")
]
Token = Annotated[str, Field(description="token of a lease, or ticket of a wait")]


def caller(ctx: Ctx) -> Principal:
    """Return the principal of a call; over stdio the user of this process."""
    request = ctx.request_context.request
    if request is None:
        return ANYBODY
    found: Principal = request.scope["principal"]
    return found


class Tools:
    """Tools over the leases of one server."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    def made(self) -> list[Callable[..., Any]]:
        """Return the tools' functions."""
        return [
            self.gpu_status, self.gpu_explain, self.gpu_acquire, self.gpu_extend, self.gpu_release,
            self.gpu_leases, self.gpu_usage,
        ]  # fmt: skip

    async def gpu_status(self, host: Host = None) -> StatusResult:
        """Show the GPUs of the pool, what is free on them, and how many requests wait."""
        from agent_sdk.state.part import Wanted  # noqa: PLC0415 - no first answer waits for it

        wanted = Wanted(host=None if host == "any" else host, most=0)
        part = await self._leases.client.scene_part(wanted)
        safe_mode = self._leases.safe_mode(pool_safe_mode=part.scene.pool.safe_mode)
        return status(part, safe_mode=safe_mode)

    async def gpu_explain(
        self,
        ctx: Ctx,
        memory_mb: MemoryMb = None,
        gpus: Gpus = 1,
        exclusive: Exclusive = False,
        host: Host = None,
        model: Model = None,
        team: Team = None,
        agent: Agent = None,
        ticket: Ticket = None,
    ) -> ExplainResult:
        """Say what would become of a request, why a ticket waits, and what would fit now.

        Nothing is asked for, and nothing changes.
        """
        client, who = self._leases.client, caller(ctx)
        if ticket is not None:
            await self._leases.require_own(who, ticket)
            return explained(await client.explain(ticket))
        options = self._options(memory_mb, gpus, exclusive, host, model)
        options |= {"ttl_s": self._leases.ttl_s, "team": who.team_for(team) or None}
        name = agent or self._leases.agent_of(who)
        found = await client.explain_request(name, **options)
        if self._leases.safe_mode(pool_safe_mode=False):  # this server's own
            found = in_safe_mode(found)
        return explained(found)

    async def gpu_acquire(
        self,
        ctx: Ctx,
        confirmed: Annotated[ElicitationResult[Confirmation], Resolve(asked_of_person)],
        memory_mb: MemoryMb = None,
        gpus: Gpus = 1,
        exclusive: Exclusive = False,
        host: Host = None,
        model: Model = None,
        priority: Priority = 0,
        team: Team = None,
        preemptible: Preemptible = False,
        yields: Yields = False,
        agent: Agent = None,
        wait_s: WaitS = 10.0,
        hold_s: HoldS = None,
        ticket: Ticket = None,
        confirm: Confirm = False,
    ) -> LeaseResult:
        """Lease GPU memory or whole GPUs; name memory_mb, or the ticket of an earlier answer.

        Without room it answers state=waiting and a ticket: your place in the queue is kept;
        call again with ticket alone until state=active. Start programs with the lease's env.
        Call gpu_release as soon as you are done.
        """
        del confirm
        require_confirmed(confirmed)
        leases, who = self._leases, caller(ctx)
        if ticket is not None:
            return await self._told(await leases.ask_again(who, ticket, wait_s, hold_s))
        options = self._options(memory_mb, gpus, exclusive, host, model)
        options |= {"priority": priority, "preemptible": preemptible, "yields": yields}
        options["team"] = who.team_for(team) or None
        name = agent or leases.agent_of(who)
        if not who.speaks_for(name):
            raise error_for("forbidden", f"this key may not ask in the name of {name}")
        leases.require_open()
        return await self._told(
            await leases.acquire(who, AgentRequest(name, options, wait_s, hold_s))
        )

    async def gpu_extend(
        self,
        ctx: Ctx,
        token: Token,
        hold_s: Annotated[float, Field(ge=1, le=604800, description="seconds from now")],
    ) -> LeaseResult:
        """Keep a lease for so many seconds from now."""
        return await self._told(await self._leases.extend(caller(ctx), token, hold_s))

    async def gpu_release(self, ctx: Ctx, token: Token) -> ReleasedResult:
        """Give a lease back, or leave the queue. released=false: it was over before."""
        return ReleasedResult(token=token, released=await self._leases.release(caller(ctx), token))

    async def gpu_leases(self, ctx: Ctx) -> LeasesResult:
        """List your leases and waits, with their tokens: for an answer that was lost.

        gpu_acquire with such a token as ticket answers with the whole lease.
        """
        return LeasesResult(leases=await self._leases.listed(caller(ctx)))

    async def gpu_usage(
        self,
        ctx: Ctx,
        everyone: Annotated[bool, Field(description="true: leases of others too")] = False,
        since: Since = "7d",
    ) -> UsageResult:
        """Show what your leases hold and use now, and what your ended ones used, with advice."""
        leases, client = self._leases, self._leases.client
        own = {row.token for row in await leases.listed(caller(ctx)) if row.state == "active"}
        lists = await client.lease_list() if everyone else ()
        tokens = [each.token for each in merge(*lists)] if everyone else sorted(own)
        found = await client.leases_of(tokens[:MOST_ROWS])
        held = await client.devices_of({uuid for each in found for uuid, _ in each.devices})
        devices, now_ms = {device.uuid: device for device in held}, (await client.pool()).now_ms
        past = past_use(await self._ended(caller(ctx), since), since)
        return usage(found, devices, now_ms, own, max(0, len(tokens) - MOST_ROWS), past)

    async def _ended(self, who: Principal, since: str) -> list[FinishedLease]:
        """Return the caller's finished leases: its key's, without keys its agent's."""
        from agent_sdk.usage.history import MOST  # noqa: PLC0415 - no first answer waits for it

        agent = None if who.name else self._leases.agent_of(who)
        found = await self._leases.client.history(agent=agent, since=since, limit=MOST)
        return [lease for lease in found.leases if lease.owner == who.name]

    def _options(
        self,
        memory_mb: int | None,
        gpus: int,
        exclusive: bool,
        host: str | None,
        model: str | None,
    ) -> LeaseOptions:
        if memory_mb is None:
            raise refused(
                "bad_request",
                "neither memory_mb nor ticket is given",
                "name memory_mb, in MiB on each GPU; 0 takes the pool's default",
            )
        return {
            "memory_mb": memory_mb,
            "devices": gpus,
            "exclusive": exclusive,
            "host": host or self._leases.host,
            "model": model,
        }

    async def _told(self, got: AsyncLease | PendingLease) -> LeaseResult:
        """Return the result that tells of a lease, or of a wait that goes on."""
        if isinstance(got, PendingLease):
            return LeaseResult(
                state="waiting",
                ticket=got.token,
                place=await self._leases.place(got.token),
                next="call gpu_acquire with this ticket; the place is kept for "
                f"{self._leases.terms.idle_release_s:g} s after each such call; gpu_explain says "
                "why it waits, gpu_release leaves the queue",
            )
        return LeaseResult(
            state="active",
            ticket=got.token,
            lease=lease_view(got, self._leases.ends(got)),
            notices=await self._leases.news(got),
            next="start programs with lease.env; call gpu_release when they have ended",
        )
