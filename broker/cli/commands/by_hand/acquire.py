"""`gpu-broker acquire`: a lease for a shell, kept in the background."""

from __future__ import annotations

from typing import Any

import click

from broker.cli import FAILED
from broker.cli.leasing.holding import Hold, in_background
from broker.cli.leasing.options import asked_in, request_options
from broker.hold.life import ProcessLife, calling_shell
from broker.identity import PROC, start_of
from broker.text.screen import say
from broker.text.units import Duration

NO_PROC = (
    "there is no /proc here, by which the shell would be watched; gpu-broker run and "
    "gpu-broker hold --detach need none"
)


class ForEval(click.Command):
    """Command whose failures fail in a shell's eval too, which sees its stdout alone."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the options; a wrong one is an exit code for eval."""
        exports = "--export" in args
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if exports:
                say(f"(exit {error.exit_code})")
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error is an exit code for eval."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params["export"]:
                say(f"(exit {getattr(error, 'exit_code', FAILED)})")
            raise


@click.command(cls=ForEval)
@request_options(here="the shell's programs run here.", wait="Default: until it fits.")
@click.option(
    "--for", "for_s", type=Duration(), default=0.0, help="Give it back after so long: 4h."
)
@click.option(
    "--pid", type=click.IntRange(min=1),
    help="Keep it while this process lives: $$ in a script; default the shell that calls.",
)  # fmt: skip
@click.option("--export", is_flag=True, help="Print lines for a shell's eval.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text",
    help="How to print: text for people, json for programs.",
)  # fmt: skip
def acquire(for_s: float, pid: int | None, export: bool, output: str, **asked: Any) -> None:
    """Take a lease for this shell, and print its token and environment.

    A small process in the background keeps it, and gives it back when this shell ends, after --for,
    or at gpu-broker release. Programs that the shell starts with that environment use its GPUs and
    are accounted to it; they are not ended with it: gpu-broker run does that.

    It waits until the request fits. Messages go to stderr; exit codes are those of gpu-broker run,
    and with --export eval returns them.

    \b
    Examples:
      eval "$(gpu-broker acquire --memory 8GiB --export)" && python train.py
      eval "$(gpu-broker acquire --gpus 2 --for 4h --wait 10m --export)"
      eval "$(gpu-broker acquire --memory 8GiB --pid $$ --export)"      in a script
      gpu-broker acquire --memory 8GiB -o json | jq -r .token
      gpu-broker extend TOKEN 2h; gpu-broker release TOKEN
    """
    hold = Hold(
        "acquire", asked["agent"], asked_in(asked), asked["store_timeout_s"], for_s, _life(pid)
    )
    in_background(hold, "export" if export else output)


def _life(pid: int | None) -> ProcessLife:
    try:
        return ProcessLife(calling_shell() if pid is None else pid)
    except ProcessLookupError:
        if not start_of(PROC, "self"):
            raise click.UsageError(NO_PROC) from None
        if pid is None:
            raise click.UsageError("the shell has ended: --pid names a process") from None
        raise click.BadParameter(f"there is no process {pid}", param_hint="--pid") from None
