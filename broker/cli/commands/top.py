"""`gpu-broker top`: GPUs, agents and processes, refreshed in place."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from agent_sdk.state.finding_kinds import KINDS
from broker.cli.commands.status import (
    DEFAULT,
    NOT_READY,
    closing,
    look,
    pool_line,
    unmatched,
)
from broker.cli.filters import MOST_GPUS, limited, of_agent, of_device_state, of_team, on_host
from broker.cli.store import output_option, pool_client, show
from broker.cli.watch import watch
from broker.text.screen import paint
from broker.text.state_word import state_of
from broker.text.table import age, bar, gib, screen_width, table
from broker.text.units import Bounded

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus, ProcessStatus
    from agent_sdk.state.pool_state import PoolState
    from broker.cli.commands.status import Seen

BAR: Final = 10

MEASURED: Final = ("utilization_gpu_pct", "temperature_c", "power_draw_w")

GPUS: Final = ("GPU", "UTIL", "", "MEMORY", "", "LEASED", "TEMP", "POWER", "STATE")

AGENTS: Final = ("AGENT", "LEASES", "GPUS", "LEASED", "USED", "PROCESSES", "WAITING")

PROCESSES: Final = ("GPU", "PID", "USER", "AGENT", "MEMORY", "UTIL", "FOR", "NAME", "FINDING")

ORDERS: Final = {
    "busy": lambda row: (-(row.process.busy_pct or 0), -(row.process.memory_mb or 0)),
    "memory": lambda row: -(row.process.memory_mb or 0),
    "agent": lambda row: (row.agent, row.place),
    "gpu": lambda row: row.at,
}
"""Orders of the processes."""


class Row(NamedTuple):
    """Process on a GPU, with the agent of its lease; empty: it has none."""

    at: int
    place: str
    agent: str
    process: ProcessStatus


@click.command()
@click.option(
    "-n", "--every", "every_s", type=Bounded(0.2, 3600), default=2.0, metavar="SECONDS",
    help="Draw anew so often, and after each event (2).",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print one picture, as happens without a terminal.")
@click.option(
    "--sort", type=click.Choice(list(ORDERS)), default="busy", help="Order of the processes (busy)."
)
@on_host
@of_agent
@of_team
@of_device_state
@limited(f"Default {MOST_GPUS} GPUs.")
@output_option()
def top(every_s: float, once: bool, sort: str, output: str, **asked: Any) -> None:
    """Show GPUs, agents and processes of the whole pool, live, until q or Ctrl-C.

    Bars show use and memory: leased (#), otherwise used (o), withheld (x), free (·). Agents are
    those with leases, processes those that the hosts see, each with the agent of its lease; a
    process without a lease has a finding.

    \b
    Examples:
      gpu-broker top
      gpu-broker top --host gpu-host-3 --sort memory
      gpu-broker top --agent analyst
      gpu-broker top --once -o json | jq '.processes[] | select(.agent == "")'
    """
    with pool_client() as client:
        pool = client.keys.pool_name
        if once or output == "json" or screen_width() is None:
            seen = look(client, "text", **asked)
            show(output, as_text(seen, sort, pool), as_data(seen, sort))
            return
        watch(
            client, every_s, lambda: as_text(look(client, "text", **asked), sort, pool), lines=False
        )


def as_data(seen: Seen, sort: str) -> dict[str, Any]:
    """Return GPUs, agents and processes for programs."""
    scene = seen.scene
    return {
        "now_ms": scene.pool.now_ms,
        "devices": [
            {
                "uuid": d.uuid,
                "host": d.host,
                "index": d.index,
                "name": d.name,
                "state": d.state,
                "total_mb": d.total_mb,
                "used_mb": d.used_mb,
                "leased_mb": d.leased_mb,
                **{name: d.telemetry[name] for name in MEASURED},
            }
            for d in scene.devices.values()
        ],
        "agents": [row._asdict() for row in agents(seen)],
        "processes": [
            asdict(row.process) | {"device": row.place, "agent": row.agent}
            for row in processes(seen, sort)
        ],
        "left_out": seen.left_out,
    }


def as_text(seen: Seen, sort: str, pool: str = DEFAULT) -> str:
    """Return GPUs, agents and processes for people, the busiest processes first."""
    scene, width = seen.scene, screen_width()
    if not scene.pool.ready:
        return NOT_READY
    gpus = [_gpu(device, scene) for device in scene.devices.values()]
    found = [_agent(row) for row in agents(seen)]
    rows = [_process(row, scene.pool.now_ms) for row in processes(seen, sort)]
    parts = [pool_line(seen, pool, width), *closing(scene.pool)]
    parts += [table(GPUS, gpus, width=width, gives=(8, 0))] if gpus else []
    parts += [table(AGENTS, found, width=width, gives=(0,))] if found else []
    parts += [table(PROCESSES, rows, width=width, gives=(7, 3, 2, 0))] if rows else []
    if not rows:
        parts += unmatched(seen) or ["no process on a GPU is seen"]
    return "\n\n".join(parts)


def _gpu(device: DeviceStatus, scene: PoolState) -> tuple[str, ...]:
    busy, warm, power = (device.telemetry[name] for name in MEASURED)
    used = device.used_mb
    shares = (
        ("#", device.leased_mb), ("o", device.unleased_mb + device.system_mb),
        ("x", device.withheld_mb),
    )  # fmt: skip
    return (
        f"{device.host}:{device.index}",
        "-" if busy is None else f"{busy:.0f} %",
        bar((("#", round(busy or 0)),), 100, BAR),
        bar(shares, device.total_mb, BAR),
        f"{'-' if used is None else gib(used)} of {gib(device.total_mb)}",
        gib(device.leased_mb),
        "-" if warm is None else f"{warm:.0f} C",
        "-" if power is None else f"{power:.0f} W",
        paint(state_of(device, scene.pool.now_ms), "green" if device.state == "ok" else "red"),
    )


class AgentRow(NamedTuple):
    """Agent with what it holds and uses, on the GPUs that are shown; MiB.

    Attributes:
        used_mb: of its processes, as far as their drivers tell.
        waiting: its requests in the queue; None: only a part of the pool was read.
    """

    agent: str
    leases: int
    gpus: int
    leased_mb: int
    used_mb: int
    processes: int
    waiting: int | None


def agents(seen: Seen) -> list[AgentRow]:
    """Return the agents of the leases and of the waiters, the largest first."""
    scene = seen.scene
    held: dict[str, list[Any]] = {}
    for lease in scene.leases.values():
        held.setdefault(lease.agent, []).append(lease)
    waiting: dict[str, int] = {}
    for waiter in scene.waiters.values():
        waiting[waiter.agent] = waiting.get(waiter.agent, 0) + 1
    found = []
    for agent in {**held, **waiting}:
        leases = held.get(agent, [])
        tokens = {lease.token for lease in leases}
        theirs = [
            (d.host, p)
            for d in scene.devices.values()
            for p in d.processes or ()
            if p.token in tokens
        ]
        found.append(
            AgentRow(
                agent,
                len(leases),
                len({uuid for lease in leases for uuid, _ in lease.devices}),
                sum(lease.memory_mb for lease in leases),
                sum(process.memory_mb or 0 for _, process in theirs),
                len({(host, process.pid) for host, process in theirs}),
                waiting.get(agent, 0) if seen.whole else None,
            )
        )
    return sorted(found, key=lambda row: (-row.leased_mb, row.agent))


def _agent(row: AgentRow) -> tuple[str, ...]:
    return (
        row.agent, str(row.leases), str(row.gpus), gib(row.leased_mb), gib(row.used_mb),
        str(row.processes), "-" if row.waiting is None else str(row.waiting),
    )  # fmt: skip


def processes(seen: Seen, sort: str) -> list[Row]:
    """Return the processes of the shown GPUs; of an agent's, where one is asked for."""
    scene = seen.scene
    of = {token: lease.agent for token, lease in scene.leases.items()}
    found = [
        Row(at, f"{device.host}:{device.index}", of.get(process.token, ""), process)
        for at, device in enumerate(scene.devices.values())
        for process in device.processes or ()
    ]
    asked = seen.asked["agent"]
    return sorted((x for x in found if asked in {None, x.agent}), key=ORDERS[sort])


def _process(row: Row, now_ms: int) -> tuple[str, ...]:
    process = row.process
    kind = KINDS.get(process.finding)
    colour = None if kind is None else "red" if kind.grave else "yellow"
    return (
        row.place,
        str(process.pid),
        process.user,
        row.agent or "-",
        "-" if process.memory_mb is None else gib(process.memory_mb),
        "-" if process.busy_pct is None else f"{process.busy_pct:.0f} %",
        age(now_ms - process.since_ms),
        process.name or "?",
        paint(process.finding, colour),
    )
