"""`gpu-broker release`: leases given back by their tokens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from agent_sdk.engines.environment import environment
from agent_sdk.errors import CODES, UnknownToken
from agent_sdk.request import own_token
from broker.cli import FAILED
from broker.cli.complete import tokens as known_tokens
from broker.cli.names import whole_token
from broker.cli.store import output_option, pool_client, show
from broker.hold.control import ask_keeper
from broker.text.screen import say

if TYPE_CHECKING:
    from agent_sdk import LeaseClient

RELEASED: Final = "released by this call"

VARIABLES: Final = (
    *environment(
        dict.fromkeys(("GPU_LEASE_TOKEN", "GPU_LEASE_FENCE", "GPU_LEASE_MEMORY_MB"), ""), ()
    ),
    "GPU_LEASE_MEMORY_FRACTION",
)  # fmt: skip
"""Variables of a lease in a shell."""


@click.command()
@click.argument("tokens", metavar="[TOKEN]...", nargs=-1, shell_complete=known_tokens)
@click.option("--export", is_flag=True, help="Print lines for a shell's eval: unset its variables.")
@output_option("name")
def release(tokens: tuple[str, ...], export: bool, output: str) -> None:
    """Give leases back at once, or places in the queue; default the lease of this shell.

    The keeper of gpu-broker acquire, hold or adopt ends with its lease. The first eight letters of
    TOKEN are enough, if only one begins so. Programs that use the GPU are not ended: end them
    first. Leases of others are an operator's matter: gpu-broker revoke.

    \b
    Examples:
      eval "$(gpu-broker release --export)"           this shell's
      gpu-broker release 5a37a41f 06909f65
      gpu-broker leases --agent "$USER@$(hostname)" -o name | xargs -r gpu-broker release
    """
    with pool_client() as client:
        named = dict(_found(client, name) for name in tokens or (own_token(None),))
        ends = {token: _release(client, token) if known else None for token, known in named.items()}
    unknown = [token for token, how in ends.items() if how is None]
    if export:
        say("\n".join(f"unset {name}" for name in VARIABLES))
    else:
        given = [token for token, how in ends.items() if how == RELEASED]
        before = {token: how for token, how in ends.items() if how not in {RELEASED, None}}
        lines = [f"{token} is given back" for token in given]
        lines += [f"{token} had ended before: {CODES[how].says}" for token, how in before.items()]
        data = {"released": given, "ended_before": before, "unknown": unknown}
        if lines or output != "text":
            show(output, "\n".join(lines), data, given)
    for token in unknown:
        text = f"nothing is known of a token {token}; gpu-broker leases lists all"
        say(f"gpu-broker: {text}", err=True)
    sys.exit(FAILED if unknown else 0)


def _found(client: LeaseClient, name: str) -> tuple[str, bool]:
    """Return the whole token; or the name and False, where no token begins so."""
    try:
        return whole_token(client, name), True
    except UnknownToken:
        return name, False


def _release(client: LeaseClient, token: str) -> str | None:
    """Give one lease back; return how it ended; None: unknown."""
    by_us = client.lookup(token) is not None and client.release(token, refuse_late=False)
    ask_keeper(token, do="release")
    if by_us:
        return RELEASED
    found = client.lookup(token)
    return found if isinstance(found, str) else None
