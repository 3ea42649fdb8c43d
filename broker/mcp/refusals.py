"""Refusals of tools: a code, the reason, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_sdk.errors import LeaseError, LeaseLost
from broker.mcp.models import Refusal

if TYPE_CHECKING:
    from pydantic import ValidationError

NEXT: Final = {
    "waiting": "call gpu_acquire with this ticket",
    "safe_mode": "work on the CPU; an operator switches SAFE_MODE off",
    "no_capacity": "call gpu_acquire with wait_s, or gpu_explain for what would fit now",
    "agent_cap": "release a lease of yours first: gpu_leases lists them",
    "limit": "release a lease of yours first: gpu_leases lists them",
    "never_fits": "ask for less: gpu_explain says what fits",
    "host_unknown": "name a host that gpu_status lists, or any",
    "model_unknown": "name a model that gpu_status lists, or none",
    "draining": "name another host, or any",
    "bad_request": "correct the arguments, and call again",
    "unknown_token": "gpu_leases lists your leases and tickets",
    "forbidden": "ask an operator for a key that may",
    "denied": "ask an operator: gpu-broker doctor names the reason",
    "timed_out": "call gpu_acquire without a ticket",
    "cancelled": "call gpu_acquire without a ticket",
    "released": "call gpu_acquire for a new lease",
    "closed": "call again in some seconds",
    "not_ready": "ask an operator to start gpu-broker serve",
    "store_full": "call again later, or work on the CPU",
    "store_unavailable": "call again later, or work on the CPU",
    "outcome_unknown": "gpu_leases shows what was done; then call again",
    "protocol_mismatch": "ask an operator to upgrade the older part",
}
"""Next step after each code; of a lost lease see `LOST`."""

LOST: Final = "stop the programs on its GPU, and call gpu_acquire for a new lease"

ELSE: Final = "gpu_status shows the pool"


class RefusedError(Exception):
    """Refusal by the server itself, without a request to the pool."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.says)
        self.refusal = refusal


def refused(code: str, says: str, what_next: str) -> RefusedError:
    """Return the error of a refusal by the server itself."""
    return RefusedError(Refusal(code=code, says=says, next=what_next, retryable=False))


def refusal_for(error: LeaseError | ValueError) -> Refusal:
    """Return the refusal that tells of an error."""
    if not isinstance(error, LeaseError):
        return Refusal(
            code="bad_request", says=str(error), next=NEXT["bad_request"], retryable=False
        )
    lost = isinstance(error, LeaseLost)
    return Refusal(
        code=error.code,
        says="it waits in the queue" if error.code == "waiting" else str(error),
        next=NEXT.get(error.code, LOST if lost else ELSE),
        retryable=error.retryable,
        token=error.token if lost else None,  # a refused request has left nothing
    )


def refusal_of(error: ValidationError) -> Refusal:
    """Return the refusal of arguments that do not match a tool's schema, without their values."""
    faults = error.errors(include_url=False, include_input=False)
    says = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in faults[:5])
    return Refusal(code="bad_request", says=says, next=NEXT["bad_request"], retryable=False)
