"""`gpu-broker queue`: who waits, straight from the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from agent_sdk.protocol import ANY
from broker.cli.store import output_option, pool_client, show
from broker.cli.table import age, gib, table

if TYPE_CHECKING:
    from agent_sdk.waiting_line import WaiterStatus

HEAD = ("TOKEN", "AGENT", "ASKS", "WHERE", "PRIO", "WAITING", "PLACE")


@click.command()
@click.option("--agent", help="Only this agent's.")
@output_option
def queue(agent: str | None, output: str) -> None:
    """Show who waits, in the order of the line. No running broker is needed.

    Of two who could use the same GPU the upper one is served first. PLACE is how many who ask
    alike (same host, model and size class) are ahead.

    \b
    Examples:
      gpu-broker queue
      gpu-broker explain TOKEN                 why that one waits
      gpu-broker queue -o json | jq -r '.queue[].token'
    """
    with pool_client() as client:
        pool = client.pool()
        found = [x for x in client.queue() if agent is None or x.agent == agent]
    rows = [
        (
            x.token,
            x.agent,
            asks(x.memory_mb, x.devices, exclusive=x.exclusive),
            where(x.asked_host, x.model),
            str(x.priority),
            age(pool.now_ms - x.joined_ms),
            place(x),
        )
        for x in found
    ]
    text = table(HEAD, rows) if rows else "nobody waits"
    show(output, text, {"now_ms": pool.now_ms, "queue": [asdict(x) for x in found]})


def asks(memory_mb: int, devices: int, *, exclusive: bool) -> str:
    """What is asked for, in a few words."""
    if devices > 1:
        return f"{devices} GPUs of {gib(memory_mb)}"
    return f"a GPU of {gib(memory_mb)}" if exclusive else gib(memory_mb)


def where(host: str, model: str) -> str:
    """Where it is asked for."""
    parts = [part for part in (host, model) if part != ANY]
    return " ".join(parts) or "anywhere"


def place(waiter: WaiterStatus) -> str:
    """Where it stands."""
    if waiter.state == "offered":
        return "its turn"
    if waiter.parked:
        return "at its cap"
    return "next" if waiter.place == 0 else f"{waiter.place} ahead"
