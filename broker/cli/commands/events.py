"""`gpu-broker events`: past events, and new ones as they come."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from agent_sdk.errors import Denied, LeaseError
from agent_sdk.keys import EVENT_ID
from agent_sdk.state.events import NAMES, Event, order
from broker.cli.complete import agents, hosts_and_devices
from broker.cli.follow import Follower, last_of
from broker.cli.store import as_json, output_option, pool_client
from broker.text.screen import one_line, paint, say
from broker.text.table import gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_sdk import LeaseClient
    from agent_sdk.state.events import News

    Places = dict[str, tuple[str, int]]

RETRY_S: Final = 0.5

LAST: Final = 20

KEPT: Final = 20_000
"""More events than the stream ever has: Redis trims it to about 10,000, by nodes of a hundred."""

LOST: Final = "some events were lost: they were trimmed, or the store lost its data"

TROUBLE: Final = frozenset({
    "expired", "revoked", "preempted", "preempting", "revoke", "timed_out", "host_away", "drained",
    "finding_raised", "quarantined", "xid", "process_ended", "hook_disabled",
})  # fmt: skip

COLUMNS: Final = (8, 15, 16, 26)
"""Letters of time, event, agent and place: lines that come one by one stand in columns."""


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Stay, and print new events, until Ctrl-C.")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(0, 10_000),
    help=f"Show this many of the last events ({LAST}).",
)
@click.option("--since", metavar="ID", help="Show all after this event, as 1795607407688-0.")
@click.option("--type", "types", multiple=True, type=click.Choice(NAMES), metavar="EVENT",
              help="Only these; may be repeated.")  # fmt: skip
@click.option(
    "--host",
    help="Only of this host, or of one GPU: gpu-host-3:0.",
    shell_complete=hosts_and_devices,
)
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
    """Show the last events; with -f new ones too. No running broker is needed.

    JSON is one object a line. The store keeps some 10,000 events. Following ends by Ctrl-C, with
    exit code 0; while the store is away it waits, and says so on stderr.

    \b
    Examples:
      gpu-broker events -n 100
      gpu-broker events -n 5 --type revoke --type drained     the last five of these
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

        def shown(found: Sequence[Event], last: int = KEPT) -> None:
            _place(client, places, found)
            chosen = [
                event
                for event in found
                if (not types or event.event in types)
                and (agent is None or event.fields.get("agent") == agent)
                and (host is None or host in _hosts_of(event, places))
            ]
            for event in chosen[max(0, len(chosen) - last) :]:
                say(one_line(LINES[output](event, places)))
            sys.stdout.flush()

        after = since
        if after is None:
            last = LAST if count is None else count
            found = client.events(KEPT if types or agent or host else max(1, last))
            shown(found, last)
            after = last_of(found)
        with Follower(client, after) as follower:
            if since is not None:
                catch_up(follower, last_of(client.events(1)), shown)
            if follow:
                _follow(follower, shown)


def catch_up(follower: Follower, end: str, shown: Callable[[Sequence[Event]], None]) -> None:
    """Show all events up to that id, and at most a page more: a busy pool never stops."""
    news = follower.wait(0)
    while news.events or news.gap:
        _tell(news, shown)
        if order(follower.last) >= order(end):
            return
        news = follower.wait(0)


def _follow(follower: Follower, shown: Callable[[Sequence[Event]], None]) -> None:
    """Show new events until Ctrl-C; an outage is told once, and costs no event."""
    away = False
    with suppress(KeyboardInterrupt):
        while True:
            try:
                news = follower.wait(1)
            except Denied:
                raise
            except LeaseError as error:
                if not away:
                    say(f"gpu-broker: the store is away: {error}", err=True)
                away = True
                time.sleep(RETRY_S)
            else:
                if away:
                    say("gpu-broker: the store is back", err=True)
                away = False
                _tell(news, shown)


def _tell(news: News, shown: Callable[[Sequence[Event]], None]) -> None:
    if news.gap:
        say(LOST, err=True)
    shown(news.events)


def _place(client: LeaseClient, places: Places, found: Sequence[Event]) -> None:
    """Learn the places of these events' devices; without the store their ids stand for them."""
    named = {uuid for event in found for uuid, _ in event.devices}
    if named - places.keys():
        with suppress(LeaseError):
            places |= {d.uuid: (d.host, d.index) for d in client.devices()}
            places |= {uuid: (uuid, -1) for uuid in named - places.keys()}  # gone: asked for once


def _hosts_of(event: Event, places: Places) -> set[str]:
    """Return the hosts of an event, and its devices as `host:index`."""
    known = {uuid for uuid, _ in event.devices if uuid in places}
    at = {places[uuid][0] for uuid in known} | {_device(places, uuid) for uuid in known}
    return at | ({event.fields["host"]} if "host" in event.fields else set())


def as_line(event: Event, places: Places) -> str:
    """Return an event as a line for people: time, event, agent, place, details."""
    fields = event.fields
    time_of_day = _time_of_day(event.at_ms).ljust(COLUMNS[0])
    devices = " ".join(_device(places, uuid) for uuid, _ in event.devices)
    mb = sum(mb or 0 for _, mb in event.devices)
    where = " ".join(filter(None, (devices or fields.get("host", ""), gib(mb) if mb else "")))
    agent, by = fields.get("agent", ""), fields.get("by", "")
    who = agent or by
    more = [
        (event.token or "")[:8], f"by {by}" if agent and by else "",
        fields.get("hook", ""), fields.get("finding", ""),
        _numbered("pid", fields), _numbered("XID", fields),
        fields.get("action", ""), fields.get("signal", ""),
        fields.get("policy", ""), _trouble(event), fields.get("reason", ""),
    ]  # fmt: skip
    colour = "red" if event.event in TROUBLE else "green" if event.event == "granted" else None
    name = paint(event.event.ljust(COLUMNS[1]), colour)
    begin = f"{time_of_day}  {name}  {who.ljust(COLUMNS[2])}  {where.ljust(COLUMNS[3])}"
    return f"{begin}  {' '.join(filter(None, more))}".rstrip()


def _time_of_day(at_ms: int) -> str:
    """Return the time by this machine's clock; `-` where a hand wrote one that no calendar has."""
    try:
        return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "-"


def _trouble(event: Event) -> str:
    """Return the state that a device came to, before its reason; empty: it is well."""
    state = event.fields.get("state", "") if event.event == "device" else ""
    return "" if state == "ok" else state


def _numbered(word: str, fields: dict[str, str]) -> str:
    """Return `pid 4711`, or an empty text."""
    value = fields.get(word.lower(), "")
    return f"{word} {value}" if value else ""


def _device(places: Places, uuid: str) -> str:
    host, index = places.get(uuid, (uuid, -1))
    return host if index < 0 else f"{host}:{index}"


def _as_object(event: Event, places: Places) -> str:
    """Return an event as JSON: the stream's fields, and the devices with their places."""
    devices: list[dict[str, Any]] = []
    for uuid, mb in event.devices:
        host, index = places.get(uuid, (uuid, -1))
        known = index >= 0
        devices.append({"uuid": uuid, "host": host if known else None,
                        "index": index if known else None, "memory_mb": mb})  # fmt: skip
    own = {"id": event.id, "event": event.event, "at_ms": event.at_ms, "devices": devices}
    return as_json(own | event.fields | own)


def _as_name(event: Event, _: Places) -> str:
    return event.id


LINES: Final = {"text": as_line, "json": _as_object, "name": _as_name}
"""Printers of an event, by form."""
