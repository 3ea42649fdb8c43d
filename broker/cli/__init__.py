"""Command line `gpu-broker`. A command is imported when it is called: `--help` stays quick."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

import click

from agent_sdk.settings import dumb_terminal
from broker import __version__
from broker.cli.start import errors_of_redis_py_alone
from broker.text.printable import printable
from broker.text.screen import say
from broker.text.streams import NowhereToPrint, prepare_streams, write_errors_in_words
from broker.text.suggest import did_you_mean

COMMANDS = {
    "serve": "Answer over HTTP, report this machine's GPUs, end what is over.",
    "host": "Report this machine's GPUs to the pool, without HTTP.",
    "run": "Run a command under a lease.",
    "acquire": "Take a lease for this shell; a keeper in the background renews it.",
    "hold": "Hold whole GPUs for a time, by hand.",
    "adopt": "Take a lease for a process that uses a GPU already.",
    "extend": "Move the end of a lease.",
    "release": "Give leases back.",
    "ask": "Ask the holder of a lease to give it up for yours that waits.",
    "wait": "Wait until a waiter has its lease; --end: until a lease ends.",
    "mcp": "Serve leases as tools to an agent's host, over stdio.",
    "status": "Show GPUs and the leases on them; -w: live.",
    "top": "Show GPUs, agents and processes, live.",
    "queue": "Show the waiters, in order, with their reasons.",
    "explain": "Say why a request waits, and what would fit now.",
    "events": "Show past events; -f: and new ones.",
    "leases": "List every living lease, with its whole token.",
    "hosts": "List the hosts that report devices.",
    "teams": "Show teams: quotas, what they have, their share; -w: live.",
    "usage": "Show what was used: busy, idle, waits, cost; --advise: right sizes.",
    "history": "Show finished leases; export: all of them as a file.",
    "revoke": "End leases as an operator.",
    "drain": "Stop new leases on a device or a host.",
    "undrain": "Allow new leases there again.",
    "forget": "Remove a device or a host from the pool.",
    "release-driver": "Make a host let go of its driver, so that a GPU can be reset.",
    "keys": "Make, list and end the API keys of the HTTP service.",
    "hooks": "Send the pool's events to URLs: webhooks, Slack, Matrix, mail.",
    "policy": "Show or change the rules for leases.",
    "functions": "Load the verbs onto the server, for redis-cli alone.",
    "doctor": "Check settings, store and devices.",
    "guard": "Tell whether a command may run: it touches no GPU, or there is a lease.",
    "skill": "Teach a coding agent to lease: a SKILL.md.",
    "completion": "Print a shell's completion script.",
}
"""Help of each command; `broker.cli.commands.<name>` has a click command of that name.

A `-` of the name is a `_` there.
"""

FOLDERS = {
    "by_hand": {"acquire", "adopt", "hold", "extend", "release", "ask", "wait"},
    "for_agents": {"guard", "mcp", "skill"},
    "for_operators": {"history", "hooks", "teams", "usage"},
}
"""Commands in folders of their own below `commands`."""

FAILED, USAGE, UNAVAILABLE, NOT_IN_TIME, DENIED = 1, 2, 69, 75, 77
"""Exit codes of failures.

Refused or failed; wrong call; store away; not granted in time; denied, by the store or by
SAFE_MODE.
"""


READING = {
    "acquire",
    "hold",
    "adopt",
    "status",
    "top",
    "queue",
    "explain",
    "events",
    "leases",
    "hosts",
    "teams",
    "usage",
    "history",
    "policy get",
    "keys new",
    "keys list",
    "hooks add",
    "hooks list",
    "hooks show",
    "functions list",
    "functions source",
    "skill show",
    "completion",
    "doctor",
}
"""Commands whose result is their output: a key that is printed nowhere is lost."""


class Commands(click.Group):
    """Group of the commands, each imported when it is called for."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, with streams that take every letter."""
        return super().main(*args, obj=prepare_streams(), **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the options; tell on stderr that the help cannot be printed."""
        with write_errors_in_words():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; tell on stderr that its output cannot be printed."""
        with write_errors_in_words():
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as missing:
                if _is_ours(missing):
                    raise
                _say_extra(ctx.invoked_subcommand or "", missing)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown name ends the program with the nearest known one.

        Raises:
            NowhereToPrint: there is no stdout, and its result would be lost.
        """
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            meant = did_you_mean(args[0], COMMANDS) or "gpu-broker --help lists the commands"
            ctx.fail(f"no command is called {printable(args[0])}; {meant}")
        if ctx.obj is False and READING & {" ".join(args[:1]), " ".join(args[:2])}:
            raise NowhereToPrint("stdout is closed: open it, for example > FILE")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command; without its extra it says how to get that."""
        del ctx
        if name not in COMMANDS:
            return None
        called = name.replace("-", "_")
        errors_of_redis_py_alone()
        try:
            rooms = [f"{room}." for room, names in FOLDERS.items() if name in names]
            module = importlib.import_module(f"broker.cli.commands.{''.join(rooms)}{called}")
        except ModuleNotFoundError as missing:
            if _is_ours(missing):
                raise
            return _needs_extra(name, missing)
        command: click.Command = getattr(module, called)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _is_ours(missing: ModuleNotFoundError) -> bool:
    """Tell whether a module of this distribution is missing, which no extra brings."""
    return bool(missing.name and missing.name.startswith(("broker", "agent_sdk")))


def _say_extra(name: str, missing: ModuleNotFoundError) -> NoReturn:
    what = missing.name or "a package"
    say(f"gpu-broker {name} needs {what}: pip install 'gpu-lease-broker[broker]'", err=True)
    sys.exit(UNAVAILABLE)


def _needs_extra(name: str, missing: ModuleNotFoundError) -> click.Command:
    def explain(**_: object) -> None:
        _say_extra(name, missing)

    return click.Command(
        name,
        callback=explain,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


class AnyWord(click.types.BoolParamType):
    """Flag that any text in its variable sets, as no-color.org defines it."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool:
        """Return whether there is a text."""
        del param, ctx
        return bool(value)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--no-color",
    envvar="NO_COLOR",
    is_flag=True,
    type=AnyWord(),
    help="Print without colours, as happens anyway without a terminal. Also NO_COLOR=1.",
)
@click.pass_context
def main(ctx: click.Context, no_color: bool) -> None:
    """Lease GPUs: the right to use GPU memory, or whole GPUs, for a time.

    Where the pool is: REDIS_URL, or the embedded store that `gpu-broker serve` starts.

    \b
    Try:
      gpu-broker serve --demo          a broker on this machine, on http://localhost:8014
      gpu-broker status -w             GPUs and the leases on them, live
      gpu-broker run --memory 8GiB -- python train.py
      eval "$(gpu-broker acquire --memory 8GiB --export)"
      gpu-broker events -f             events as they come
      gpu-broker doctor                settings, and problems
    """
    if no_color or dumb_terminal():
        ctx.color = False
