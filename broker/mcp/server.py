"""MCP server itself: tools and resources, the same over both transports."""

from __future__ import annotations

import asyncio
import json
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import (
    ResourceError,
    ResourceNotFoundError,
    ToolError,
    UnexpectedToolError,
)
from mcp.server.mcpserver.tools.base import Tool
from mcp.server.request_state import RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import ValidationError

from agent_sdk.errors import LeaseError, LeaseLost, StillWaiting, UnknownToken, error_for
from broker import __version__
from broker.mcp.models import Notice, Refusal
from broker.mcp.reading import lease_view
from broker.mcp.refusals import RefusedError, refusal_for, refusal_of
from broker.mcp.tools import ROLES, Tools, caller
from broker.mcp_terms import CALL_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from broker.mcp.leases import Leases

NAME: Final = "gpu-broker"

INSTRUCTIONS: Final = """\
Lease a GPU before a program uses one, and give it back when the program has ended.
1. gpu_status shows what is free; gpu_explain says what would become of a request.
2. gpu_acquire leases it. state=waiting: do other work, and call it again with the ticket.
3. Start the program with the lease's env, and stay within its memory_mb.
4. Long work: gpu_extend, or hold_s. Read the notices of each result: after preempt save, release
   and ask again; after wanted you may.
5. gpu_release. No GPU to be had, or SAFE_MODE: work on the CPU.
"""

STATE_KEY: Final = b"gpu-broker: what confirm=true says as well"
"""Key of the state that a client carries while a person is asked.

All replicas have it, so that any of them goes on. It is public: the state holds a person's word
alone, which an agent can give by confirm=true as well.
"""

READING: Final = {"gpu_status", "gpu_explain", "gpu_leases", "gpu_usage"}
"""Tools that change nothing."""

DESTRUCTIVE: Final = {"gpu_release", "gpu_run"}


class LeaseServer(MCPServer[None]):
    """MCP server over the leases of agents.

    Args:
        leases: the leases.
        more: functions of further tools.
        options: of the SDK's server.
    """

    def __init__(
        self, leases: Leases, more: Iterable[Callable[..., Any]] = (), **options: Any
    ) -> None:
        self._leases, self.terms = leases, leases.terms
        self._bus = InMemorySubscriptionBus()
        leases.changed = self._changed
        tools = [_tool(function) for function in (*Tools(leases).made(), *more)]
        self._parameters = {tool.name: tool.parameters["properties"] for tool in tools}
        super().__init__(
            NAME,
            title="GPU lease broker",
            instructions=INSTRUCTIONS,
            version=__version__,
            tools=tools,
            log_level="WARNING",
            subscriptions=self._bus,
            request_state_security=RequestStateSecurity(keys=[STATE_KEY]),
            **options,
        )
        self.resource("gpu://pool", name="pool", mime_type="application/json",
                      description="The pool, as gpu_status shows it")(self._pool)  # fmt: skip
        self.resource("gpu://lease/{token}", name="lease", mime_type="application/json",
                      description="A lease of yours, by its token")(self._lease)  # fmt: skip

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[None, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; a refusal is a result with its code, and news come with any result."""
        assert context is not None  # noqa: S101 - calls come from a client alone
        try:
            _require_role(context, name)
            self._leases.note(tool=name if name in ROLES else "unknown")
            result = await super().call_tool(name, self._said(name, arguments), context)
        except (LeaseError, ToolError) as error:
            refusal = _refusal(error)
            self._leases.note(code=refusal.code)
            result = _refused(refusal)
        if isinstance(result, CallToolResult):
            _add(result, await self._notices(context))
        return result

    def _said(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments without those that are null: clients name all, said or not."""
        known = self._parameters.get(name, {})
        return {
            of: value for of, value in arguments.items() if value is not None or of not in known
        }

    async def _changed(self, token: str) -> None:
        """Tell clients that listen to a lease of its news; others read them in the next result."""
        await self._bus.publish(ResourceUpdated(uri=f"gpu://lease/{token}"))

    async def _notices(self, context: Context[None, Any]) -> list[Notice]:
        try:
            return await self._leases.notices(caller(context))
        except LeaseError:  # the next result has them
            return []

    async def _pool(self) -> str:  # any role may read it
        try:
            return (await Tools(self._leases).gpu_status()).model_dump_json()
        except LeaseError as error:
            raise ResourceError(str(error)) from error

    async def _lease(self, token: str, ctx: Context[None, Any]) -> str:
        try:
            _require_role(ctx, "gpu_leases")
            lease = await self._leases.find(caller(ctx), token)
        except (LeaseLost, StillWaiting, UnknownToken) as error:
            raise ResourceNotFoundError(str(error)) from error
        except LeaseError as error:
            raise ResourceError(str(error)) from error
        return lease_view(lease, self._leases.ends(lease)).model_dump_json()


def _bounded(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a tool's function with a limit of time; a person's answer before it has none."""

    @wraps(function)
    async def bounded(*args: Any, **arguments: Any) -> Any:
        try:
            async with asyncio.timeout(CALL_S):
                return await function(*args, **arguments)
        except TimeoutError:
            raise error_for("outcome_unknown") from None

    return bounded


def _tool(function: Callable[..., Any]) -> Tool:
    """Return a tool that refuses unknown arguments, in place of dropping them."""
    name = function.__name__
    tool = Tool.from_function(
        _bounded(function),
        description=" ".join((function.__doc__ or "").split()),
        annotations=ToolAnnotations(
            read_only_hint=name in READING,
            destructive_hint=name in DESTRUCTIVE,
            idempotent_hint=name in READING,
            open_world_hint=False,
        ),
    )
    model = tool.fn_metadata.arg_model
    model.model_config["extra"] = "forbid"
    model.model_rebuild(force=True)
    tool.parameters["additionalProperties"] = False
    return tool


def _require_role(context: Context[None, Any], name: str) -> None:
    """Raise Denied if the caller's role may not use a tool."""
    who = caller(context)
    if name in ROLES and not who.is_at_least(ROLES[name]):
        raise error_for("forbidden", f"a key of the role {who.role} may not call {name}")


def _refusal(error: Exception) -> Refusal:
    """Return the refusal for what a tool raised; the text of a crash stays here."""
    cause = error.__cause__ or error
    if isinstance(cause, RefusedError):
        return cause.refusal
    if isinstance(cause, ValidationError):
        return refusal_of(cause)
    if isinstance(cause, LeaseError):
        return refusal_for(cause)
    if isinstance(error, UnexpectedToolError):
        raise error
    return refusal_for(ValueError(str(error)))  # an unknown tool, or a strange answer of a person


def _refused(refusal: Refusal) -> CallToolResult:
    text = f"{refusal.code}: {refusal.says}. Next: {refusal.next}"
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=refusal.model_dump(),
        is_error=True,
    )


def _add(result: CallToolResult, notices: list[Notice]) -> None:
    """Add news to a result, for programs and for readers of its text."""
    if not notices or result.structured_content is None:
        return
    said = [notice.model_dump() for notice in notices]
    result.structured_content["notices"] = said
    result.content.append(TextContent(type="text", text=json.dumps({"notices": said})))
