"""`gpu-broker leases`: all leases, with whole tokens."""

from __future__ import annotations

from dataclasses import asdict

import click

from agent_sdk.state.findings import enforced, of_lease
from broker.cli.complete import agents, hosts_and_devices
from broker.cli.names import target_of, unheard_agent
from broker.cli.store import output_option, pool_client, show
from broker.text.table import age, gib, table

HEAD = ("TOKEN", "AGENT", "DEVICES", "MEMORY", "LEFT", "HELD", "PROCESS", "FINDINGS")

MORE = ("FENCE", "PRIO", "CLIENT", "OWNER")


@click.command()
@click.option("--agent", help="Only this agent's.", shell_complete=agents)
@click.option(
    "--host",
    help="Only those on this host, or on one GPU of it: gpu-host-3:0.",
    shell_complete=hosts_and_devices,
)
@output_option("wide", "name")
def leases(agent: str | None, host: str | None, output: str) -> None:
    """List every living lease, oldest first, with its host's findings.

    \b
    Examples:
      gpu-broker leases
      gpu-broker leases --host gpu-host-3      what a drained host waits for
      gpu-broker leases --agent analyst -o json | jq -r '.leases[].token'
      gpu-broker leases -o wide                the client and the fence too
    """
    with pool_client() as client:
        pool = client.pool()
        devices = {device.uuid: device for device in client.devices()}
        place = None if host is None else target_of(client, host)
        there = {
            uuid for uuid, device in devices.items()
            if place is not None and place.name in {uuid, device.host}
        }  # fmt: skip
        found = [
            x for x in client.leases()
            if (agent is None or x.agent == agent)
            and (place is None or any(uuid in there for uuid, _ in x.devices))
        ]  # fmt: skip
        meant = "" if agent is None else unheard_agent(client, agent)
    wide = output == "wide"
    said = {x.token: of_lease(x, devices) for x in found}
    rows = [
        (
            x.token,
            x.agent,
            " ".join(uuid for uuid, _ in x.devices) or "cpu",
            gib(x.memory_mb),
            "no expiry" if x.expires_at_ms is None else age(x.expires_at_ms - pool.now_ms),
            age(pool.now_ms - x.granted_at_ms),
            x.pid.partition(":")[0],
            " ".join(said[x.token]),
            *((str(x.fence), str(x.priority), x.client, x.owner or "-") if wide else ()),
        )
        for x in found
    ]
    text = (
        table((*HEAD, *MORE) if wide else HEAD, rows)
        if rows
        else f"no leases{meant and f': {meant}'}"
    )
    data = [
        asdict(x)
        | {
            "memory_mb": x.memory_mb,
            "findings": said[x.token],
            "enforced": enforced(x, devices),
        }
        for x in found
    ]
    show(output, text, {"now_ms": pool.now_ms, "leases": data}, (x.token for x in found))
