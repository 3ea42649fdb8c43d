"""`gpu-broker history`: finished leases, one by one, and files of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from agent_sdk.state.snapshot import ENDS
from agent_sdk.usage.history import MOST
from broker.cli.complete import hosts
from broker.cli.filters import of_agent, of_team
from broker.cli.past.export import FORMS, STDOUT, export, form_of
from broker.cli.past.finished import COLUMNS, HEAD, cells, record
from broker.cli.past.times import PastTime
from broker.cli.past.use_table import csv_text
from broker.cli.store import output_option, pool_client, show
from broker.text.screen import say
from broker.text.table import many, screen_width, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import LeaseClient
    from agent_sdk.usage.history import FinishedLease

LAST: Final = 20

COMMANDLINE: Final = click.core.ParameterSource.COMMANDLINE

NONE: Final = (
    "no finished lease is remembered that matches; one is there some 12 s after its end, and\n"
    "history_leases of the policy says how many there are"
)


def wanted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which leases are wanted."""
    for option in (
        click.option("--outcome", type=click.Choice(ENDS), help="Only those that ended so."),
        click.option("--since", type=PastTime(), help="Only those that ended then or later: 12h, "
                     "30d, 2026-11-01."),
        click.option("--host", help="Only those on this host.", shell_complete=hosts),
        of_team,
        of_agent,
    ):  # fmt: skip
        function = option(function)
    return function


@click.group(invoke_without_command=True)
@click.option("-n", "--count", type=click.IntRange(1, MOST), default=LAST, show_default=True,
              help="Show this many of the last.")  # fmt: skip
@wanted
@output_option("jsonl", "csv")
@click.pass_context
def history(ctx: click.Context, /, count: int, output: str, **asked: Any) -> None:
    """Show finished leases, the last at the end: what each had, where, and how it ended.

    PEAK is the most memory that its processes used, BUSY the part of the observed time in which
    they computed; `-` is not known. A lease is there some 12 s after its end, and the store keeps
    some 10,000: history_leases of the policy. `history export` writes all of them to a file.

    \b
    Examples:
      gpu-broker history
      gpu-broker history -n 100 --agent analyst --since 2d
      gpu-broker history --host gpu-host-3 --outcome expired
      gpu-broker history -o jsonl | jq -r 'select(.peak_mb < .mb / 2) | .agent'
      gpu-broker history export leases.csv
    """
    if ctx.invoked_subcommand is not None:
        if any(ctx.get_parameter_source(name) is COMMANDLINE for name in ctx.params):
            raise click.UsageError(f"say the options behind {ctx.invoked_subcommand}")
        return
    with pool_client() as client:
        found = last(client, count, **asked)
    if output == "jsonl":
        for lease in found:
            say(json.dumps(record(lease)))
    elif output == "csv":
        say(csv_text(tuple(COLUMNS), [record(lease) for lease in found]))
    else:
        rows = [cells(lease) for lease in found]
        text = table(HEAD, rows, width=screen_width(), gives=(5, 3, 2, 4)) if rows else NONE
        show(output, text, {"leases": [record(lease) for lease in found]})


def last(client: LeaseClient, count: int, **asked: Any) -> list[FinishedLease]:
    """Return the last leases that match, the oldest first; one reading looks at a part alone."""
    found: list[FinishedLease] = []
    before, more = "", True
    while more and len(found) < count:
        page = client.history(limit=count - len(found), before=before, **asked)
        found = [*page.leases, *found]
        before, more = page.first, page.more
    return found


@history.command("export", short_help="Write all of them to a file: JSON lines, CSV, Parquet.")
@click.argument("file")
@click.option("--format", "form", type=click.Choice(FORMS),
              help="Default by the end of the file's name.")  # fmt: skip
@wanted
def export_command(file: str, form: str | None, **asked: Any) -> None:
    """Write all finished leases that are remembered to FILE, the oldest first; - is stdout.

    The columns are the same in each form; docs/how-to/usage.md has them. The file is written in
    parts, and gets its name when it is complete. Parquet needs pyarrow: pip install
    'gpu-lease-broker[parquet]'.

    \b
    Examples:
      gpu-broker history export leases.parquet
      gpu-broker history export --format csv - | head
      gpu-broker history export --since 2026-11-01 --team vision november.jsonl
    """
    form = form_of(file, form)
    with pool_client() as client:
        try:
            count = export(client, file, form, **asked)
        except OSError as error:
            if file == STDOUT:
                raise
            raise click.ClickException(f"{file}: {error.strerror}") from error
    if file != STDOUT:
        say(f"{many(count, 'finished lease', 'finished leases')} in {file}")
