"""`gpu-broker ask`: a waiter asks the holder of a lease to give it up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agent_sdk.errors import error_for
from agent_sdk.state.queue import WaiterStatus
from broker.cli import FAILED
from broker.cli.complete import tokens
from broker.cli.names import PREFIX, whole_token
from broker.cli.store import output_option, pool_client, show
from broker.identity import user_at_host
from broker.text.table import gib

if TYPE_CHECKING:
    from agent_sdk import LeaseClient

NO_WAIT = (
    "only a request that waits may ask: gpu-broker run --wait 1h, and gpu-broker queue -o wide"
)


@click.command()
@click.argument("token", shell_complete=tokens)
@click.option(
    "--for", "waiter", metavar="TOKEN", shell_complete=tokens,
    help="The request that waits. Default the one that waits in your name (user@host).",
)  # fmt: skip
@output_option()
def ask(token: str, waiter: str | None, output: str) -> None:
    """Ask the holder of a lease to give it up for a request of yours that waits.

    A holder that took it with --yields (yields=True) is told which agent wants how much, at its
    next renewal: gpu-broker run and hold print it, lease.wanted has it. It may go on all the same,
    and nothing is taken from it. Any other holder is not asked. What is given up goes to the head
    of the queue.

    The exit code is 0 when it was asked, 1 when it does not yield. The first eight letters of a
    token are enough.

    \b
    Examples:
      gpu-broker ask 5a37a41f
      gpu-broker ask 5a37a41f --for 06909f65
    """
    with pool_client() as client:
        token = whole_token(client, token)
        mine = _waiter(client, waiter)
        found = client.lookup(token)
        if isinstance(found, WaiterStatus):
            raise error_for("waiting", f"{token[:PREFIX]} has no lease yet: none can be given up")
        if found is None or isinstance(found, str):
            raise error_for(found or "unknown_token", token=token)
        asked = client.request_yield(token, mine.token)
    size = gib(mine.memory_mb * mine.devices)
    text = (
        f"asked: {found.agent} is told that {mine.agent} wants {size}"
        if asked
        else f"declined: {found.agent} did not take {token[:PREFIX]} with --yields"
    )
    show(output, text, {"token": token, "for": mine.token, "asked": asked})
    sys.exit(0 if asked else FAILED)


def _waiter(client: LeaseClient, name: str | None) -> WaiterStatus:
    """Return the waiter of that token, or the only one of this user.

    Raises:
        LeaseError: it does not wait.
        UsageError: several wait, or none does.
    """
    if name is not None:
        token = whole_token(client, name)
        found = client.lookup(token)
        if isinstance(found, WaiterStatus):
            return found
        if found is None or isinstance(found, str):
            raise error_for(found or "unknown_token", token=token)
        raise click.UsageError(f"{token[:PREFIX]} has its lease already: {NO_WAIT}")
    agent = user_at_host()
    own = [waiter for waiter in client.queue() if waiter.agent == agent]
    if len(own) == 1:
        return own[0]
    if not own:
        raise click.UsageError(f"no request of {agent} waits; name one with --for: {NO_WAIT}")
    listed = " ".join(waiter.token[:PREFIX] for waiter in own[:5])
    raise click.UsageError(f"{len(own)} requests of {agent} wait: name one with --for: {listed}")
