"""`gpu-broker hosts`: machines that report devices."""

from __future__ import annotations

from dataclasses import asdict

import click

from broker.cli.host_words import said_of
from broker.cli.store import output_option, pool_client, show
from broker.text.screen import one_line
from broker.text.table import age, table

HEAD = ("HOST", "STATE", "DEVICES", "LAST REPORT", "VERSION")


@click.command()
@output_option("wide", "name")
def hosts(output: str) -> None:
    """List the hosts that report devices, with the age of their last report.

    Below them stands which host does not see its GPUs, or warns, and why.

    \b
    Examples:
      gpu-broker hosts
      gpu-broker hosts -o json | jq -r '.hosts[] | select(.drained) | .host'
    """
    with pool_client() as client:
        pool, found = client.pool(), client.hosts()
        taking = {device.host for device in client.devices() if not device.drained}
    rows, wide = [], output == "wide"
    for host in found:
        silent_ms = pool.now_ms - host.reported_ms
        alive = host.alive(pool.now_ms)
        state = ("alive, trouble" if host.trouble else "alive") if alive else "away"
        if host.drained:
            state += ", drained"
        # each device by itself; new ones would take leases
        elif host.devices and host.host not in taking:
            state += ", draining"
        more = (age(host.deadline_ms),) if wide else ()
        rows.append((host.host, state, str(host.devices), age(silent_ms), host.version, *more))
    head = (*HEAD, "DEADLINE") if wide else HEAD
    text = table(head, rows) if rows else "no hosts"
    said = [
        line for host in found if host.alive(pool.now_ms) for line in said_of(host, pool.now_ms)
    ]
    text = "\n\n".join(filter(None, [text, "\n".join(map(one_line, said))]))
    data = {"now_ms": pool.now_ms, "hosts": [asdict(host) for host in found]}
    show(output, text, data, (host.host for host in found))
