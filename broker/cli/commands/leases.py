"""`gpu-broker leases`: all leases, with whole tokens."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

import click

from agent_sdk.state.findings import enforced, of_lease
from broker.cli.filters import (
    first,
    in_state,
    in_teams,
    limited,
    of_agent,
    of_team,
    on_host,
    place_of,
    rest,
)  # fmt: skip
from broker.cli.names import unheard_agent
from broker.cli.store import output_option, pool_client, show
from broker.text.state_word import preempting
from broker.text.table import age, gib, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk import LeaseClient
    from agent_sdk.state.snapshot import LeaseStatus
    from broker.cli.filters import ShownPlace

HEAD = ("TOKEN", "AGENT", "DEVICES", "MEMORY", "LEFT", "HELD", "PROCESS", "FINDINGS", "NOTE")

MORE = ("FENCE", "PRIO", "CLIENT", "OWNER")


@click.command()
@of_agent
@of_team
@on_host
@in_state("active", "cpu")
@limited("Default all.")
@output_option("wide", "name")
def leases(
    agent: str | None,
    team: str | None,
    host: str | None,
    state: str | None,
    limit: int | None,
    output: str,
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
        now_ms = client.pool().now_ms
        found, count = _chosen(client, place_of(client, host), agent, team, state, limit)
        devices = {d.uuid: d for d in client.devices_of({u for x in found for u, _ in x.devices})}
        meant = "" if found or agent is None else unheard_agent(client, agent)
    wide = output == "wide"
    said = {x.token: of_lease(x, devices) for x in found}
    shows_team = in_teams((x.team for x in found), team)
    rows = [_row(x, now_ms, said[x.token], wide=wide, shows_team=shows_team) for x in found]
    such = "such " if agent or team or host or state else ""
    text = f"no {such}leases{meant and f': {meant}'}"
    if rows:
        head = (*HEAD[:2], *(("TEAM",) if shows_team else ()), *HEAD[2:])
        text = table((*head, *MORE) if wide else head, rows)
    if more := rest(count, limit, "lease", "leases"):
        text = f"{text}\n\n{more}"
    data = [
        asdict(x)
        | {"memory_mb": x.memory_mb, "findings": said[x.token], "enforced": enforced(x, devices)}
        for x in found
    ]
    facts = {"now_ms": now_ms, "total": count, "leases": data}
    show(output, text, facts, (x.token for x in found))


def _chosen(
    client: LeaseClient,
    place: ShownPlace,
    agent: str | None,
    team: str | None,
    state: str | None,
    limit: int | None,
) -> tuple[Sequence[LeaseStatus], int]:
    """Read the leases that are shown, and return the number of all that match, too."""
    tokens = sorted(chain(*client.lease_list(agent, place.host, state)))
    if place.device is None and team is None:
        shown = first(tokens, limit)
        return client.leases_of([entry.token for entry in shown]), len(tokens)
    leases = client.leases_of([entry.token for entry in tokens])
    there = [
        lease
        for lease in leases
        if (place.device is None or place.device in dict(lease.devices))
        and team in {None, lease.team}
    ]
    return first(there, limit), len(there)


def _row(
    lease: LeaseStatus, now_ms: int, said: Sequence[str], *, wide: bool, shows_team: bool
) -> tuple[str, ...]:
    ends_ms = lease.expires_at_ms
    more = (str(lease.fence), str(lease.priority), lease.client, lease.owner or "-")
    return (
        lease.token,
        lease.agent,
        *((lease.team,) if shows_team else ()),
        " ".join(uuid for uuid, _ in lease.devices) or "cpu",
        gib(lease.memory_mb),
        "no expiry" if ends_ms is None else age(ends_ms - now_ms),
        age(now_ms - lease.granted_at_ms),
        lease.pid.partition(":")[0],
        ", ".join(filter(None, [" ".join(said), preempting(lease, now_ms)])),
        lease.note,
        *(more if wide else ()),
    )
