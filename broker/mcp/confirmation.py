"""Confirmation by a person of requests that are larger than an agent takes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context, Elicit
from pydantic import BaseModel, Field

from broker.mcp.refusals import refused

if TYPE_CHECKING:
    from broker.mcp_terms import Terms


class Confirmation(BaseModel):
    """Word of a person."""

    confirm: bool = Field(description="true: take it")


async def asked_of_person(
    ctx: Context[Any, Any], gpus: int, memory_mb: int | None, confirm: bool
) -> Confirmation | Elicit[Confirmation]:
    """Return the word that a request needs, or the question for it.

    Raises:
        RefusedError: the client cannot ask.
    """
    terms: Terms = ctx.mcp_server.terms  # type: ignore[attr-defined] # it is our LeaseServer
    asks_anew = memory_mb is not None  # else it asks about an earlier request
    over = terms.too_large(gpus, memory_mb or 0) if asks_anew and not confirm else ""
    if not over:
        return Confirmation(confirm=True)
    can = ctx.client_capabilities
    if can is None or can.elicitation is None:
        raise refused(
            "confirmation_needed",
            over,
            "ask the person you work for, and call again with confirm=true once they agree; "
            "or ask for less",
        )
    return Elicit(f"{over}. Let it take them?", Confirmation)


def require_confirmed(said: ElicitationResult[Confirmation]) -> None:
    """Raise RefusedError after a person's no."""
    if not isinstance(said, AcceptedElicitation) or not said.data.confirm:
        raise refused(
            "declined",
            "the person did not confirm the request",
            "ask for less, or work without a GPU",
        )
