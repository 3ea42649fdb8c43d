"""`gpu-broker revoke`: end leases as an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli.complete import agents, hosts_and_devices, tokens
from broker.cli.names import target_of, unheard_agent, whole_token
from broker.cli.store import output_option, pool_client, show

if TYPE_CHECKING:
    from agent_sdk import LeaseClient


@click.command()
@click.argument("token", required=False, shell_complete=tokens)
@click.option("--agent", help="All leases of this agent.", shell_complete=agents)
@click.option(
    "--host",
    help="All leases on this host, or on one GPU of it: gpu-host-3:0.",
    shell_complete=hosts_and_devices,
)
@click.option(
    "--reason", required=True, help="The reason, for the log and for the holder's operator."
)
@click.option("--force", is_flag=True, help="Now, although the holder still trusts the lease.")
@output_option()
def revoke(
    token: str | None, agent: str | None, host: str | None, reason: str, force: bool, output: str
) -> None:
    """End leases: holders learn it at their next renewal, and within a minute it takes effect.

    It acts at once, without a question, and cannot be undone: a holder has to lease anew. Look
    first at what it would end: gpu-broker leases takes the same --agent and --host. The process is
    not ended, unless it runs under gpu-broker run or the policy says so.

    The first eight letters of TOKEN are enough, if only one begins so.

    \b
    Examples:
      gpu-broker revoke 5a37a41f --reason 'runaway job'
      gpu-broker revoke --agent analyst --reason 'policy changed'
      gpu-broker revoke --host gpu-host-3:0 --reason 'GPU must be reset'
      gpu-broker revoke --host gpu-host-3 --reason 'host must go down' --force
    """
    if (token is None) == (agent is None and host is None):
        raise click.UsageError("name a TOKEN, or --agent and/or --host")
    with pool_client() as client:
        if token is not None:
            token = whole_token(client, token)
            ends_ms = client.revoke(token, force=force, why=reason)
            force = force or ends_ms <= client.pool().now_ms  # a wait ends at once
            revoked: tuple[str, ...] = (token,)
        else:
            revoked = _revoke_all(client, agent, host, force=force, why=reason)
        meant = "" if revoked or agent is None else unheard_agent(client, agent)
    when = "now" if force else "at the holder's next renewal, within a minute"
    none = f"no such lease{meant and f': {meant}'}"
    text = "\n".join(f"{each} ends {when}" for each in revoked) or none
    show(output, text, {"revoked": list(revoked)})


def _revoke_all(
    client: LeaseClient, agent: str | None, host: str | None, *, force: bool, why: str
) -> tuple[str, ...]:
    """Revoke all leases of an agent, on a host or a GPU, or both; return their tokens."""
    where: dict[str, str] = {}
    if host is not None:
        target = target_of(client, host)
        where[target.kind] = target.name
    return client.revoke_where(agent=agent, force=force, why=why, **where)
