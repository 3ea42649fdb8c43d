"""`gpu-broker queue`: the waiters, straight from the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from agent_sdk.protocol.messages import ANY
from agent_sdk.state.pool_state import standings
from agent_sdk.state.queue import matches
from broker.cli.complete import hosts
from broker.cli.filters import first, in_state, in_teams, limited, of_agent, of_team, rest
from broker.cli.names import PREFIX
from broker.cli.store import output_option, pool_client, show
from broker.text.suggest import did_you_mean
from broker.text.table import age, gib, many, screen_width, table

if TYPE_CHECKING:
    from agent_sdk.state.pool_state import PoolState, QueueStanding
    from agent_sdk.state.queue import WaiterStatus

HEAD: Final = ("TOKEN", "AGENT", "ASKS", "WHERE", "PRIO", "WAITING", "PLACE", "WHY")

MORE: Final = ("CLIENT", "PROCESS", "OWNER")

BEHIND_TEAM: Final = "behind team "
"""Begin of the reason between teams."""

ROOMY: Final = 160
"""Columns of a terminal that has room for whole tokens and sentences."""


@click.command()
@of_agent
@of_team
@click.option("--host", help="Only those that may go to this host.", shell_complete=hosts)
@in_state("waiting", "offered")
@limited("Default all.")
@output_option("wide", "name")
def queue(
    agent: str | None,
    team: str | None,
    host: str | None,
    state: str | None,
    limit: int | None,
    output: str,
) -> None:
    """Show the waiters in the order of their queues, with reasons. No running broker is needed.

    Of two waiters that could use the same GPU the upper one gets it first. PLACE counts the waiters
    ahead in the same queue (same host, model and size class).

    revoke, in the last example, asks no question: print the names alone first. A waiter that has
    got its lease meanwhile loses that.

    \b
    Examples:
      gpu-broker queue
      gpu-broker queue --host gpu-host-3 --limit 10
      gpu-broker explain TOKEN                 every detail of one
      gpu-broker queue -o json | jq -r '.queue[].token'
      gpu-broker queue --agent runaway -o name | xargs -rn1 gpu-broker revoke --reason 'wild'
    """
    with pool_client() as client:
        scene = client.queue_scene()
    meant = "" if agent is None else _meant(agent, scene)
    matching = [
        x
        for x in scene.waiters.values()
        if matches(x, agent, host, state) and team in {None, x.team}
    ]
    found = first(matching, limit)
    stands, wide = standings(scene), output == "wide"
    width = None if wide else screen_width()
    narrow = width is not None and width < ROOMY
    whole = wide or (width is not None and not narrow)
    shows_team = in_teams((x.team for x in found), team)
    rows = [
        (
            x.token[:PREFIX] if narrow else x.token,
            x.agent,
            *((x.team,) if shows_team else ()),
            asks(x.memory_mb, x.devices, exclusive=x.exclusive),
            where(x.asked_host, x.model),
            str(x.priority),
            age(scene.pool.now_ms - x.enqueued_ms),
            place(x),
            stands[x.token].says if whole else why(stands[x.token], x, scene.pool.now_ms),
            *((x.client, x.pid.partition(":")[0], x.owner or "-") if wide else ()),
        )
        for x in found
    ]
    head = (*HEAD[:2], *(("TEAM",) if shows_team else ()), *HEAD[2:], *(MORE if wide else ()))
    gives = [x + (x > 1 and shows_team) for x in (3, 1, 7, 2)]
    text = table(head, rows, width=width, gives=gives) if rows else _empty(scene, meant)
    if more := rest(len(matching), limit, "request", "requests"):
        text = f"{text}\n\n{more}"
    data = [asdict(x) | {"code": stands[x.token].code, "why": stands[x.token].says} for x in found]
    facts = {"now_ms": scene.pool.now_ms, "total": len(matching), "queue": data}
    show(output, text, facts, (x.token for x in found))


def _empty(scene: PoolState, meant: str) -> str:
    """Say that no request is shown, and how many the filters leave out."""
    count = len(scene.waiters)
    others = f"; {many(count, 'other waits', 'others wait')}" if count else ""
    return f"no {'such ' if count else ''}request waits{others}{meant and f': {meant}'}"


def _meant(agent: str, scene: PoolState) -> str:
    """Suggest an agent instead of one without leases and waits; empty: it has some."""
    known = {*scene.held, *(waiter.agent for waiter in scene.waiters.values())}
    return "" if agent in known else did_you_mean(agent, known)


def asks(memory_mb: int, devices: int, *, exclusive: bool) -> str:
    """Return the request in a few words."""
    if devices > 1:
        return f"{devices} GPUs of {gib(memory_mb)}"
    return f"a GPU of {gib(memory_mb)}" if exclusive else gib(memory_mb)


def where(host: str, model: str) -> str:
    """Return the requested host and model."""
    parts = [part for part in (host, model) if part != ANY]
    return " ".join(parts) or "anywhere"


def place(waiter: WaiterStatus) -> str:
    """Return the waiter's place in its queue."""
    if waiter.state == "offered":
        return "its turn"
    if waiter.capped:
        return "at its cap"
    return "next" if waiter.place == 0 else f"{waiter.place} ahead"


def why(stands: QueueStanding, waiter: WaiterStatus, now_ms: int) -> str:
    """Return the states of the devices that would do; or the code, if no device is the obstacle."""
    says = [f"{count} {word.replace('_', ' ')}" for word, count in stands.devices.items()]
    if stands.says.startswith(BEHIND_TEAM):
        says = [stands.says.partition(":")[0].partition(";")[0]]
    if waiter.preempt_at_ms is not None:
        says.insert(0, f"preempting in {max(0, waiter.preempt_at_ms - now_ms) // 1000} s")
    if of := waiter.reservation:
        until = "" if of.until_ms is None else f" for {age(max(0, of.until_ms - now_ms))}"
        says.insert(0, f"{len(of.devices)} reserved{until}")
    return ", ".join(says) or stands.code
