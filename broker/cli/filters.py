"""Options that show a part of a list, with the same words in each command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import click

from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.state.lists import ShownState
from broker.cli.complete import agents, hosts_and_devices, teams
from broker.cli.names import target_of
from broker.text.table import many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent_sdk import LeaseClient

MOST_GPUS: Final = 200
"""GPUs that `status` shows to people, if no other limit is named."""


class ShownPlace(NamedTuple):
    """Host, or device, that a list is limited to; both None: no limit."""

    host: str | None = None
    device: str | None = None


def of_agent(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--agent`."""
    option = click.option("--agent", help="Only this agent's.", shell_complete=agents)
    return option(function)


def of_team(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--team`."""
    option = click.option("--team", help="Only this team's.", shell_complete=teams)
    return option(function)


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--host`, which `place_of` resolves."""
    option = click.option(
        "--host",
        help="Only this host, or one GPU of it: gpu-host-3:0.",
        shell_complete=hosts_and_devices,
    )
    return option(function)


def in_state(*words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--state` with these words."""
    return click.option("--state", type=click.Choice(words), help="Only in this state.")


def of_device_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--state` of lists of GPUs."""
    option = click.option(
        "--state",
        type=click.Choice(get_args(ShownState)),
        metavar="STATE",
        help=f"Only GPUs in this state: {', '.join(get_args(ShownState))}.",
    )
    return option(function)


def limited(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--limit`; `default` says in words how many are shown without it."""
    return click.option(
        "--limit", type=click.IntRange(min=0), help=f"Show no more; 0: all. {default}"
    )


def place_of(client: LeaseClient, name: str | None) -> ShownPlace:
    """Return the place of a name, as `target_of` finds it."""
    if name is None:
        return ShownPlace()
    target = target_of(client, name)
    return ShownPlace(host=target.name) if target.kind == "host" else ShownPlace(device=target.name)


def in_teams(names: Iterable[str], asked: str | None) -> bool:
    """Tell whether a list has a column for teams: one that is not the default one is in it."""
    return asked is not None or any(name != DEFAULT_TEAM for name in names)


def first(rows: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """Return the rows that are shown."""
    return rows[:limit] if limit else rows


def rest(count: int, limit: int | None, one: str, more: str) -> str:
    """Say how many are not shown; empty: none."""
    left_out = count - limit if limit else 0
    said = many(left_out, f"more {one}", f"more {more}")
    return f"{said}: --limit 0 shows all" if left_out > 0 else ""
