"""`gpu-broker extend`: a later end of a lease."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from agent_sdk.errors import LeaseError, error_for
from agent_sdk.protocol.messages import LONGEST_TTL_MS
from agent_sdk.state.queue import WaiterStatus
from broker.cli.commands.by_hand import KEEPING
from broker.cli.complete import tokens
from broker.cli.leasing.holding import clock_time
from broker.cli.names import whole_token
from broker.cli.store import output_option, pool_client, show
from broker.hold.control import ask_keeper
from broker.identity import user_at_host
from broker.text.table import age
from broker.text.units import Duration

if TYPE_CHECKING:
    from agent_sdk import LeaseClient
    from agent_sdk.state.snapshot import LeaseStatus

BEYOND: Final = {
    "team_limit": ", or moves this one all the same: --as-operator",
    "no_capacity": ": --as-operator",
}
"""Ends of the sentences about limits that an operator may go beyond, by their codes."""


@click.command()
@click.argument("token", shell_complete=tokens)
@click.argument("longer_s", metavar="TIME", type=Duration())
@click.option(
    "--as-operator",
    is_flag=True,
    help="Move a time limit also beyond what its team may hold a lease for (max_hold_s), and "
    "beyond the time for which reserved GPUs are lent.",
)
@output_option()
def extend(token: str, longer_s: float, as_operator: bool, output: str) -> None:
    """Move the end of a lease by TIME, such as 2h.

    Of a lease that was taken with --for (gpu-broker acquire, hold) its keeper's end moves. Of any
    other lease its expiry moves, and so it lasts without renewals, to 7 days from now at most. A
    time limit (--time, max_hold_s) that would end it before then moves too: by TIME, or as far as
    the keeper's end needs. The holder of a lease whose team has a max_hold_s moves it within that,
    counted from the grant. On GPUs that are reserved for a request that waits, and lent
    meanwhile, it stays within that time. The first eight letters of the token are enough.

    \b
    Examples:
      gpu-broker extend 5a37a41f 2h
      gpu-broker extend "$GPU_LEASE_TOKEN" 30m
      gpu-broker extend 5a37a41f 12h --as-operator
    """
    with pool_client() as client:
        token = whole_token(client, token)
        lease = _living(client, token)
        kept = ask_keeper(token, do="tell")
        if kept is None and lease.client.startswith(KEEPING):
            raise error_for(
                "bad_request",
                f"the keeper of {token[:8]} runs on another machine, or as another user: call "
                "gpu-broker extend there",
            )
        hold_s = _moved_limit(client, lease, longer_s, kept, as_operator=as_operator)
        kept = kept and ask_keeper(token, do="extend", seconds=longer_s)
        left_s, limit = _renewed(client, lease, longer_s) if kept is None else (_left_s(kept), "")
    if hold_s is not None and (left_s is None or kept is None or left_s > hold_s):
        left_s, limit = hold_s, ""
    ends_at = None if left_s is None else time.time() + left_s
    show(
        output,
        _in_words(token, left_s, kept, limit),
        {"token": token, "ends_at": ends_at, "limit": limit, "kept": kept is not None},
    )


def _moved_limit(
    client: LeaseClient,
    lease: LeaseStatus,
    longer_s: float,
    kept: dict[str, Any] | None,
    *,
    as_operator: bool,
) -> float | None:
    """Move the time limit of a lease, if it ends it; return the seconds left of it, or None."""
    if lease.hold_until_ms is None:
        return None
    left_s = max(0.0, (lease.hold_until_ms - client.pool().now_ms) / 1000)
    own_s = None if kept is None else _left_s(kept)
    wanted_s = left_s + longer_s if own_s is None else max(left_s, own_s + longer_s)
    if wanted_s > left_s:
        try:
            client.extend_hold(lease.token, wanted_s, by=user_at_host() if as_operator else "")
        except LeaseError as error:
            if error.code not in BEYOND:
                raise
            raise error_for(error.code, f"{error}{BEYOND[error.code]}", token=lease.token) from None
    return wanted_s


def _living(client: LeaseClient, token: str) -> LeaseStatus:
    """Return the lease of a token.

    Raises:
        LeaseError: it waits, has ended, or is unknown.
    """
    found = client.lookup(token)
    if isinstance(found, WaiterStatus):
        raise error_for("waiting", f"{token[:8]} has no lease yet: gpu-broker wait {token[:8]}")
    if found is None or isinstance(found, str):
        raise error_for(found or "unknown_token", token=token)
    return found


def _left_s(kept: dict[str, Any]) -> float | None:
    return None if kept["ends_at"] is None else float(kept["ends_at"]) - time.time()


def _renewed(client: LeaseClient, lease: LeaseStatus, longer_s: float) -> tuple[float | None, str]:
    """Renew a lease to its end and so long beyond; return the seconds left, and what limits it."""
    if lease.expires_at_ms is None:
        return None, ""
    left_ms = max(0, lease.expires_at_ms - client.pool().now_ms) + round(longer_s * 1000)
    limit = "a lease lasts 7 days without a renewal at most" if left_ms > LONGEST_TTL_MS else ""
    ttl_s = min(left_ms, LONGEST_TTL_MS) / 1000
    renewal = client.renew(lease.token, max(1.0, ttl_s), fence=lease.fence)
    return renewal.remaining_ms / 1000, limit


def _in_words(token: str, left_s: float | None, kept: dict[str, Any] | None, limit: str) -> str:
    if left_s is None:
        if kept is None:
            return f"{token[:8]} has no expiry: there is no end to move"
        life = f"process {kept['with_pid']} ends" if kept["with_pid"] else "it is released"
        return f"{token[:8]} has no end by time to move: it is kept until {life}"
    unless = ", unless it is renewed" if kept is None else ""
    end = f"in {age(round(left_s * 1000))}, at {clock_time(time.time() + left_s)}"
    return f"{token[:8]} ends {end}{unless}{limit and f': {limit}'}"
