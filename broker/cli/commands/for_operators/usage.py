"""`gpu-broker usage`: what each agent used, and which sizes would have done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from agent_sdk.usage.reading import WHERE, WHO, checked
from broker.cli.past import advice_table, use_table
from broker.cli.past.times import PastTime
from broker.cli.store import output_option, pool_client, show
from broker.text.screen import say

if TYPE_CHECKING:
    from datetime import date, datetime, timedelta

DEFAULT_BY: Final = "team,agent"

DEFAULT_SINCE: Final = "30d"


class Words(click.ParamType[tuple[str, ...]]):
    """Click parameter type: words to group by, with commas between."""

    name = "words"

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        """Return the words; wrong ones end the command with the reason."""
        if isinstance(value, tuple):
            return value
        words = tuple(filter(None, (word.strip() for word in value.split(","))))
        if wrong := [word for word in words if word not in {*WHO, *WHERE}]:
            self.fail(f"{wrong[0]!r} is none of day, team, agent, host, model", param, ctx)
        if "host" in words and {"team", "agent"} & {*words}:
            self.fail(
                "use is kept by who (team, agent) and by where (host), not by both; gpu-broker "
                "history --host HOST has who was there",
                param,
                ctx,
            )
        return checked(words)


@click.command()
@click.option(
    "--by",
    type=Words(),
    default=DEFAULT_BY,
    help=f"Group by these: team, agent, model; or host, model. Default {DEFAULT_BY}.",
)
@click.option(
    "--since", type=PastTime(), help=f"From then on: 12h, 30d, 2026-11-01. Default {DEFAULT_SINCE}."
)
@click.option("--until", type=PastTime(), help="Until then; a day is included. Default now.")
@click.option("--day", is_flag=True, help="A row for each day.")
@click.option(
    "--advise", is_flag=True, help="Sizes that would have fitted the finished leases, per agent."
)
@output_option("csv")
def usage(
    by: tuple[str, ...],
    since: timedelta | date | datetime | None,
    until: timedelta | date | datetime | None,
    day: bool,
    advise: bool,
    output: str,
) -> None:
    """Show what was used: GPU-hours leased, busy, idle and not known, waits, and cost.

    A share of a GPU counts its part. BUSY is when a lease's processes computed, IDLE when they did
    not, as hosts saw it; UNKNOWN is what no host could tell. ABOVE PEAK is memory that was leased
    and never used. What has ended counts by whole days of UTC, what runs now exactly. COST is
    shown when the policy has prices.

    \b
    Examples:
      gpu-broker usage
      gpu-broker usage --by team --since 2026-11-01 --until 2026-11-30
      gpu-broker usage --by host,model --since 7d
      gpu-broker usage --by team --day -o csv > november.csv
      gpu-broker usage --advise                 which sizes would have done
      gpu-broker usage -o json | jq '.rows[] | {team, agent, idle_gpu_hours}'
      gpu-broker policy set 'price_per_gpu_hour=NVIDIA H200=3.2,*=1'
    """
    if advise:
        if until is not None or day or by != checked(DEFAULT_BY.split(",")):
            raise click.UsageError("--advise goes with --since and -o alone: it is by agent")
        with pool_client() as client:
            advised = client.size_advice(since=since)
        _print(output, advice_table, advised)
        return
    words = ("day", *by) if day and "day" not in by else by
    with pool_client() as client:
        found = client.usage(by=words, since=DEFAULT_SINCE if since is None else since, until=until)
    _print(output, use_table, found)


def _print(output: str, form: Any, found: Any) -> None:
    """Print in a module's forms: text, data, CSV."""
    if output == "csv":
        say(form.csv_of(found))
    else:
        show(output, form.text_of(found) if output == "text" else "", form.data_of(found))
