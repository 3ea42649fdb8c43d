"""`gpu-broker teams`: quotas, and what teams have of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from broker.cli.store import as_json, output_option, pool_client, show
from broker.cli.watch import watch
from broker.text.printable import printable
from broker.text.screen import paint
from broker.text.table import gib, screen_width, table
from broker.text.units import Bounded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_sdk import LeaseClient
    from agent_sdk.teams.status import TeamStatus

HEAD = ("TEAM", "NOMINAL", "USED", "BORROWED", "LENT", "LEASES", "WAITING", "SHARE", "WEIGHT")

MORE = ("BORROWS", "LENDS", "PRIORITY", "MOST LEASES", "MOST WAITING", "HOLD", "TTL", "RESERVED")

NONE = (
    "no team has a policy, leases or waiters: gpu-broker policy apply gives teams quotas, "
    "--team and GPU_BROKER_TEAM name one"
)


@click.command()
@click.option(
    "-w",
    "--watch",
    "every_s",
    type=Bounded(0.2, 3600),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Stay, and draw anew: after each event, and every so many seconds (2).",
)
@output_option("wide", "name")
def teams(every_s: float | None, output: str) -> None:
    """Show teams: their quotas, what they have, and their share of past use.

    NOMINAL is a team's own quota, with a line below it for each model that its policy has a quota
    of. BORROWED is what it holds beyond that, LENT what others hold of
    it. SHARE is its part of what all teams have used lately, and behind it stands the part that its
    weight gives it; a team below that part comes before others that borrow.

    \b
    Examples:
      gpu-broker teams
      gpu-broker teams -w                      live, until q or Ctrl-C
      gpu-broker teams -o wide                 every limit of its policy
      gpu-broker teams -o json | jq '.teams[] | {name, used_mb, nominal_mb}'
    """
    with pool_client() as client:

        def picture() -> str:
            found = client.teams()
            return as_json(_data(client, found)) if output == "json" else _text(found, output)

        if every_s is not None:
            watch(client, every_s, picture, lines=output in {"json", "name"})
            return
        found = client.teams()
        data = _data(client, found)
    show(output, _text(found, output), data, (team.name for team in found))


def _data(client: LeaseClient, found: Sequence[TeamStatus]) -> dict[str, Any]:
    version = client.pool().policy_version
    return {"version": version, "teams": [asdict(team) for team in found]}


def _text(found: Sequence[TeamStatus], output: str) -> str:
    """Return the teams for people, or their names alone."""
    if output == "name":
        return "\n".join(team.name for team in found)
    if not found:
        return NONE
    wide = output == "wide"
    rows = [row for team in found for row in _rows(team, wide=wide)]
    width = None if wide else screen_width()
    return table((*HEAD, *MORE) if wide else HEAD, rows, width=width, gives=(0,))


def _rows(team: TeamStatus, *, wide: bool) -> Iterator[tuple[str, ...]]:
    """Yield a team, and its quotas by model."""
    yield (*_row(team), *(_more(team) if wide else ()))
    for model, quota in sorted(team.by_model.items()):
        more = (_limit(quota.borrow_mb, "MiB"), *[""] * 6, _some(quota.reserved_mb))
        yield (
            f"  {printable(model)}", gib(quota.nominal_mb), gib(quota.used_mb),
            paint(gib(quota.borrowed_mb), "yellow") if quota.borrowed_mb else "-",
            *[""] * 5, *(more if wide else ()),
        )  # fmt: skip


def _row(team: TeamStatus) -> tuple[str, ...]:
    waits = team.waiters and team.used_mb < team.own_mb
    return (
        team.name,
        gib(team.own_mb) if team.listed else "-",
        gib(team.used_mb),
        paint(gib(team.borrowed_mb), "yellow") if team.borrowed_mb else "-",
        gib(team.lent_mb) if team.lent_mb else "-",
        str(team.leases),
        paint(str(team.waiters), "red" if waits else None) if team.waiters else "-",
        f"{team.used_share:.0%} of {team.wanted_share:.0%}",
        str(team.weight),
    )


def _more(team: TeamStatus) -> tuple[str, ...]:
    return (
        _limit(team.borrow_mb, "MiB"),
        _limit(team.lend_mb, "MiB"),
        _limit(team.max_priority),
        _limit(team.max_leases),
        _limit(team.max_waiters),
        _limit(team.max_hold_s or None, "s"),
        _limit(team.max_ttl_s or None, "s"),
        _some(team.reserved_mb),
    )


def _some(mb: int) -> str:
    return gib(mb) if mb else "-"


def _limit(value: int | None, unit: str = "") -> str:
    return "any" if value is None else f"{value} {unit}".rstrip()
