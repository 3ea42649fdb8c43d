"""`gpu-broker leases`: all leases, with whole tokens."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain

import click

from agent_sdk.state.findings import enforced, of_lease
from broker.cli.filters import first, in_state, limited, of_agent, on_host, place_of, rest
from broker.cli.names import unheard_agent
from broker.cli.store import output_option, pool_client, show
from broker.text.table import age, gib, table

HEAD = ("TOKEN", "AGENT", "DEVICES", "MEMORY", "LEFT", "HELD", "PROCESS", "FINDINGS", "NOTE")

MORE = ("FENCE", "PRIO", "CLIENT", "OWNER")


@click.command()
@of_agent
@on_host
@in_state("active", "cpu")
@limited("Default all.")
@output_option("wide", "name")
def leases(
    agent: str | None, host: str | None, state: str | None, limit: int | None, output: str
) -> None:
    """List every living lease, oldest first, with its host's findings.

    In state active are leases on GPUs, in state cpu those on the CPU.

    \b
    Examples:
      gpu-broker leases
      gpu-broker leases --host gpu-host-3      what a drained host waits for
      gpu-broker leases --agent analyst -o json | jq -r '.leases[].token'
      gpu-broker leases -o wide                the client and the fence too
      gpu-broker leases --state cpu --limit 20
    """
    with pool_client() as client:
        pool, place = client.pool(), place_of(client, host)
        tokens = sorted(chain(*client.lease_list(agent, place.host, state)))
        asked = tokens if place.device else first(tokens, limit)
        found = client.leases_of([entry.token for entry in asked])
        if place.device:
            found = [x for x in found if place.device in dict(x.devices)]
        count = len(found) if place.device else len(tokens)
        found = list(first(found, limit))
        devices = {d.uuid: d for d in client.devices_of({u for x in found for u, _ in x.devices})}
        meant = "" if found or agent is None else unheard_agent(client, agent)
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
            x.note,
            *((str(x.fence), str(x.priority), x.client, x.owner or "-") if wide else ()),
        )
        for x in found
    ]
    text = (
        table((*HEAD, *MORE) if wide else HEAD, rows)
        if rows
        else f"no leases{meant and f': {meant}'}"
    )
    if more := rest(count, limit, "lease", "leases"):
        text = f"{text}\n\n{more}"
    data = [
        asdict(x)
        | {
            "memory_mb": x.memory_mb,
            "findings": said[x.token],
            "enforced": enforced(x, devices),
        }
        for x in found
    ]
    facts = {"now_ms": pool.now_ms, "total": count, "leases": data}
    show(output, text, facts, (x.token for x in found))
