"""`gpu-broker hosts`: which machines report devices."""

from __future__ import annotations

from dataclasses import asdict

import click

from broker.cli.store import output_option, pool_client, show
from broker.cli.table import age, table


@click.command()
@output_option
def hosts(output: str) -> None:
    """List the hosts that report devices, with the age of their last report.

    \b
    Example:
      gpu-broker hosts
    """
    with pool_client() as client:
        pool, found = client.pool(), client.hosts()
    rows = []
    for host in found:
        silent_ms = pool.now_ms - host.reported_ms
        state = "alive" if silent_ms <= host.deadline_ms else "away"
        if host.drained:
            state += ", drained"
        rows.append((host.host, state, str(host.devices), age(silent_ms), host.version))
    text = (
        table(("HOST", "STATE", "DEVICES", "LAST REPORT", "VERSION"), rows) if rows else "no hosts"
    )
    show(output, text, {"now_ms": pool.now_ms, "hosts": [asdict(host) for host in found]})
