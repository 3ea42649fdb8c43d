"""`gpu-broker leases`: who holds what, with whole tokens."""

from __future__ import annotations

from dataclasses import asdict

import click

from broker.cli.store import output_option, pool_client, show
from broker.cli.table import age, gib, table

HEAD = ("TOKEN", "AGENT", "DEVICES", "MEMORY", "LEFT", "HELD", "PROCESS")


@click.command()
@click.option("--agent", help="Only this agent's.")
@output_option
def leases(agent: str | None, output: str) -> None:
    """List every lease that lives, oldest first.

    \b
    Examples:
      gpu-broker leases
      gpu-broker leases --agent analyst -o json | jq -r '.leases[].token'
    """
    with pool_client() as client:
        pool = client.pool()
        found = [x for x in client.leases() if agent is None or x.agent == agent]
    rows = [
        (
            x.token,
            x.agent,
            " ".join(uuid for uuid, _ in x.devices) or "cpu",
            gib(x.memory_mb),
            "no expiry" if x.expires_at_ms is None else age(x.expires_at_ms - pool.now_ms),
            age(pool.now_ms - x.granted_at_ms),
            x.pid.partition(":")[0],
        )
        for x in found
    ]
    text = table(HEAD, rows) if rows else "no leases"
    data = [asdict(x) | {"memory_mb": x.memory_mb} for x in found]
    show(output, text, {"now_ms": pool.now_ms, "leases": data})
