"""`gpu-broker events`: what happened, and what happens."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click
from redis.exceptions import RedisError

from agent_sdk.errors import LeaseError
from agent_sdk.events import NAMES, PAGE, Event
from agent_sdk.keys import EVENT_ID
from broker.cli.complete import agents, hosts
from broker.cli.follow import Follower
from broker.cli.store import as_json, output_option, pool_client
from broker.cli.table import gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_sdk import LeaseClient

    Places = dict[str, tuple[str, int]]

RETRY_S: Final = 0.5

LOST: Final = "some events were lost: they were trimmed, or the store lost its memory"

TROUBLE: Final = frozenset({"expired", "revoked", "revoke", "lapsed", "host_away", "drained"})

COLUMNS: Final = (8, 12, 16, 26)
"""Letters of time, event, who and where, so that lines which come one by one stand in columns."""


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Stay, and print what happens, until Ctrl-C.")
@click.option("-n", "--count", type=click.IntRange(0, 10_000), help="The last so many (20).")
@click.option("--since", metavar="ID", help="All after this event, as 1795607407688-0.")
@click.option("--type", "types", multiple=True, type=click.Choice(NAMES), metavar="EVENT",
              help="Only these; may be repeated.")  # fmt: skip
@click.option("--host", help="Only of this host.", shell_complete=hosts)
@click.option("--agent", help="Only of this agent.", shell_complete=agents)
@output_option("name")
def events(
    follow: bool,
    count: int | None,
    since: str | None,
    types: tuple[str, ...],
    host: str | None,
    agent: str | None,
    output: str,
) -> None:
    """Show what happened last; with -f what happens too. No running broker is needed.

    JSON is one object a line. The store keeps some 10,000 events.

    \b
    Examples:
      gpu-broker events -n 100
      gpu-broker events -f --type granted --type expired
      gpu-broker events -f -o json | jq -r 'select(.agent == "analyst") | .event'
      gpu-broker events --since 1795607407688-0 -o name
    """
    if since is not None and not EVENT_ID.fullmatch(since):
        raise click.UsageError(f"{since} is not the id of an event, as 1795607407688-0")
    if since is not None and count is not None:
        raise click.UsageError("--since or --count, not both")
    with pool_client() as client:
        places: Places = {}

        def shown(found: Sequence[Event]) -> None:
            _place(client, places, found)
            for event in found:
                at = {places[uuid][0] for uuid, _ in event.devices if uuid in places}
                if (
                    (not types or event.event in types)
                    and (agent is None or event.fields.get("agent") == agent)
                    and (host is None or host in {event.fields.get("host"), *at})
                ):
                    click.echo(LINES[output](event, places))
            sys.stdout.flush()

        if since is None:
            found = client.events(max(1, 20 if count is None else count))
            since = found[-1].id if found else "0-0"
            shown(() if count == 0 else found)
        else:
            since = _catch_up(client, since, shown)
        if follow:
            _follow(client, since, shown)


def _catch_up(client: LeaseClient, since: str, shown: Callable[[Sequence[Event]], None]) -> str:
    """Show all that came after an event; the id of the last."""
    with Follower(client, since) as follower:
        while True:
            news = follower.wait(0)
            if news.gap:
                click.echo(LOST, err=True)
                found = client.events(PAGE)
                shown(found)
                return found[-1].id if found else "0-0"
            if not news.events:
                return since
            shown(news.events)
            since = news.events[-1].id


def _follow(client: LeaseClient, since: str, shown: Callable[[Sequence[Event]], None]) -> None:
    """Show what happens until Ctrl-C; an outage is said once, and nothing is missed for it."""
    away = False
    with Follower(client, since) as follower:
        try:
            while True:
                try:
                    news = follower.wait(1)
                    if news.gap:
                        click.echo(LOST, err=True)
                    shown(news.events)
                except (RedisError, LeaseError) as error:
                    if not away:
                        click.echo(f"gpu-broker: the store is away: {error}", err=True)
                    away = True
                    time.sleep(RETRY_S)
                else:
                    if away:
                        click.echo("gpu-broker: the store is back", err=True)
                    away = False
        except KeyboardInterrupt:
            return


def _place(client: LeaseClient, places: Places, found: Sequence[Event]) -> None:
    """Learn where devices are that these events name."""
    named = {uuid for event in found for uuid, _ in event.devices}
    if named - places.keys():
        places |= {d.uuid: (d.host, d.index) for d in client.devices()}
        places |= {uuid: (uuid, -1) for uuid in named - places.keys()}  # gone: asked once


def as_line(event: Event, places: Places) -> str:
    """For people: time, event, who, where, what else."""
    fields = event.fields
    time_of_day = datetime.fromtimestamp(event.at_ms / 1000).astimezone().strftime("%H:%M:%S")
    devices = " ".join(_device(places, uuid) for uuid, _ in event.devices)
    mb = sum(mb or 0 for _, mb in event.devices)
    where = " ".join(filter(None, (devices or fields.get("host", ""), gib(mb) if mb else "")))
    who = fields.get("agent") or fields.get("by") or ""
    more = [(event.token or "")[:8], fields.get("policy", ""), fields.get("reason", "")]
    if event.event == "device" and fields.get("state") != "ok":
        more.append(fields.get("state", ""))
    colour = "red" if event.event in TROUBLE else "green" if event.event == "granted" else None
    name = click.style(event.event.ljust(COLUMNS[1]), fg=colour)
    begin = f"{time_of_day}  {name}  {who.ljust(COLUMNS[2])}  {where.ljust(COLUMNS[3])}"
    return f"{begin}  {' '.join(filter(None, more))}".rstrip()


def _device(places: Places, uuid: str) -> str:
    host, index = places.get(uuid, (uuid, -1))
    return host if index < 0 else f"{host}:{index}"


def _as_object(event: Event, places: Places) -> str:
    """For programs: the fields as the stream has them, and the devices with their places."""
    devices: list[dict[str, Any]] = []
    for uuid, mb in event.devices:
        host, index = places.get(uuid, (uuid, -1))
        known = index >= 0
        devices.append({"uuid": uuid, "host": host if known else None,
                        "index": index if known else None, "memory_mb": mb})  # fmt: skip
    said = {"id": event.id, "event": event.event, "at_ms": event.at_ms, **event.fields}
    return as_json(said | {"devices": devices})


def _as_name(event: Event, _: Places) -> str:
    return event.id


LINES: Final = {"text": as_line, "json": _as_object, "name": _as_name}
"""How an event is printed."""
