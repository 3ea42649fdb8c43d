"""`gpu-broker`: the command line. A command is imported when it is called: `--help` is quick."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from agent_sdk.settings import dumb_terminal
from broker import __version__
from broker.text.printable import printable
from broker.text.screen import say
from broker.text.streams import NowhereToPrint, prepare_streams, write_errors_in_words
from broker.text.suggest import did_you_mean

COMMANDS = {
    "serve": "Answer over HTTP, report this machine's GPUs, take back what is over.",
    "host": "Report this machine's GPUs to the pool, without HTTP.",
    "run": "Run a command under a lease.",
    "status": "Show GPUs and who holds what; -w: live.",
    "queue": "Show who waits, in order, and why.",
    "explain": "Say why somebody waits, and what would fit now.",
    "events": "Show what happened; -f: and what happens.",
    "leases": "List every lease that lives, with whole tokens.",
    "hosts": "List the hosts that report devices.",
    "revoke": "End leases as an operator.",
    "drain": "Let a device or a host take no new leases.",
    "undrain": "Let it take leases again.",
    "forget": "Take a device or a host out of the pool.",
    "keys": "Make, list and end the API keys of the HTTP door.",
    "policy": "Show or change what may be leased.",
    "functions": "Put the verbs on the server as functions, for redis-cli alone.",
    "doctor": "Say what is set, what is there, and what is wrong.",
    "completion": "Print what makes a shell complete all this.",
}
"""Every command by its name: `broker.cli.commands.<name>` has a click command of that name."""

FAILED, USAGE, UNAVAILABLE, NOT_IN_TIME, DENIED = 1, 2, 69, 75, 77
"""Exit codes: it was refused; the call is wrong; the store is away; it was not granted in time; it
is denied, by the store or by SAFE_MODE."""


READING = {"status", "queue", "explain", "events", "leases", "hosts", "doctor"}
"""Commands that are for what they print."""


class Commands(click.Group):
    """The commands, each imported when it is called for."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, with streams that take what is printed."""
        return super().main(*args, obj=prepare_streams(), **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what cannot be printed is said on stderr."""
        with write_errors_in_words():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        del ctx
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that nothing has ends with the nearest that there is."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            meant = did_you_mean(args[0], COMMANDS) or "gpu-broker --help lists the commands"
            ctx.fail(f"no command is called {printable(args[0])}; {meant}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command; one whose extra is missing says how to get it."""
        del ctx
        if name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"broker.cli.commands.{name}")
        except ModuleNotFoundError as missing:
            if missing.name and missing.name.startswith(("broker", "agent_sdk")):
                raise
            return _needs_extra(name, missing.name or "a package")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _needs_extra(name: str, missing: str) -> click.Command:
    def explain(**_: object) -> None:
        say(f"gpu-broker {name} needs {missing}: pip install 'gpu-lease-broker[broker]'", err=True)
        sys.exit(UNAVAILABLE)

    return click.Command(
        name,
        callback=explain,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


class AnyWord(click.types.BoolParamType):
    """A flag that any word of its variable sets, as no-color.org has it."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool:
        """Return whether there is one."""
        del param, ctx
        return bool(value)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--no-color",
    envvar="NO_COLOR",
    is_flag=True,
    type=AnyWord(),
    help="Print without colours; there are none anyway where no terminal is. Also NO_COLOR=1.",
)
@click.pass_context
def main(ctx: click.Context, no_color: bool) -> None:
    """Lease GPUs: the right to use GPU memory, or whole GPUs, for a time.

    Where the pool is: REDIS_URL, or the embedded store that `gpu-broker serve` starts.

    \b
    Try:
      gpu-broker serve --demo          a broker on this machine, on http://localhost:8014
      gpu-broker status -w             what there is and who holds it, live
      gpu-broker run --memory 8GiB -- python train.py
      gpu-broker events -f             what happens
      gpu-broker doctor                what is set, and what is wrong
    """
    if no_color or dumb_terminal():
        ctx.color = False
    if not ctx.obj and ctx.invoked_subcommand in READING:
        raise NowhereToPrint("stdout is closed, so there is nowhere to print")
