"""`gpu-broker revoke`: end leases as an operator."""

from __future__ import annotations

import click

from broker.cli.complete import agents, hosts, tokens
from broker.cli.store import output_option, pool_client, show


@click.command()
@click.argument("token", required=False, shell_complete=tokens)
@click.option("--agent", help="All leases of this agent.", shell_complete=agents)
@click.option("--host", help="All leases on this host.", shell_complete=hosts)
@click.option(
    "--reason", required=True, help="Why: the log and the holder's operator want to know."
)
@click.option("--force", is_flag=True, help="Now, although the holder still trusts the lease.")
@output_option()
def revoke(
    token: str | None, agent: str | None, host: str | None, reason: str, force: bool, output: str
) -> None:
    """End leases: their holders learn it at the next renewal, within a minute at the latest.

    \b
    Examples:
      gpu-broker revoke 5a37a41f3e664bbab5ca0f0f67787aae --reason 'runaway job'
      gpu-broker revoke --agent analyst --reason 'policy changed'
      gpu-broker revoke --host gpu-host-3 --reason 'host must go down' --force
    """
    if (token is None) == (agent is None and host is None):
        raise click.UsageError("name a TOKEN, or --agent and/or --host")
    with pool_client() as client:
        if token is not None:
            client.revoke(token, force=force, why=reason)
            tokens: tuple[str, ...] = (token,)
        else:
            tokens = client.revoke_where(agent=agent, host=host, force=force, why=reason)
    when = "now" if force else "at the holder's next renewal, within a minute"
    lines = [f"{each} ends {when}" for each in tokens] or ["no such lease"]
    show(output, "\n".join(lines), {"revoked": list(tokens)})
