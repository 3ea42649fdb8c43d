"""`gpu-broker hosts`: machines that report devices."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from broker.cli.complete import hosts as known_hosts
from broker.cli.filters import first, in_state, limited, rest
from broker.cli.host_words import said_of
from broker.cli.store import output_option, pool_client, show
from broker.text.screen import one_line
from broker.text.suggest import did_you_mean
from broker.text.table import age, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.snapshot import HostStatus

HEAD = ("HOST", "STATE", "DEVICES", "LAST REPORT", "VERSION")


@click.command()
@click.option("--host", "name", help="Only this one.", shell_complete=known_hosts)
@in_state("alive", "away", "drained")
@limited("Default all.")
@output_option("wide", "name")
def hosts(name: str | None, state: str | None, limit: int | None, output: str) -> None:
    """List the hosts that report devices, with the age of their last report.

    Below them stands which host does not see its GPUs, or warns, and why.

    \b
    Examples:
      gpu-broker hosts
      gpu-broker hosts --state away
      gpu-broker hosts -o json | jq -r '.hosts[] | select(.drained) | .host'
    """
    with pool_client() as client:
        pool, every = client.pool(), client.hosts()
        matching = [x for x in every if name in {None, x.host} and _is(x, state, pool.now_ms)]
        found = first(matching, limit)
        taking = {device.host for device in client.devices() if not device.drained}
    rows, wide, such = [], output == "wide", "such " if name or state else ""
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
    text = table(head, rows) if rows else _none(such, name, every)
    said = [
        line for host in found if host.alive(pool.now_ms) for line in said_of(host, pool.now_ms)
    ]
    cut = rest(len(matching), limit, "host", "hosts")
    text = "\n\n".join(filter(None, [text, cut, "\n".join(map(one_line, said))]))
    data = {
        "now_ms": pool.now_ms,
        "total": len(matching),
        "hosts": [asdict(host) for host in found],
    }
    show(output, text, data, (host.host for host in found))


def _is(host: HostStatus, state: str | None, now_ms: int) -> bool:
    """Tell whether a host is in a state of the option `--state`."""
    if state == "drained":
        return host.drained
    return state is None or host.alive(now_ms) == (state == "alive")


def _none(such: str, name: str | None, every: Iterable[HostStatus]) -> str:
    """Say that there are no hosts, or none that is asked for, with the nearest name."""
    known = {host.host for host in every}
    meant = did_you_mean(name, known) if name and name not in known else ""
    return f"no {such}hosts{meant and f': {meant}'}"
