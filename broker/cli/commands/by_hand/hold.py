"""`gpu-broker hold`: whole GPUs for a time, by hand."""

from __future__ import annotations

from typing import Any

import click

from broker.cli.leasing.holding import Hold, in_background, in_foreground
from broker.cli.leasing.options import asked_in, request_options
from broker.cli.store import output_option
from broker.text.units import Duration


@click.command()
@request_options(here="its programs use the GPUs.", wait="Default: until it fits.")
@click.option(
    "--for", "for_s", type=Duration(), default=0.0, help="Give it back after so long: 4h."
)
@click.option("--detach", is_flag=True, help="Hold in the background; --for says how long.")
@output_option()
def hold(for_s: float, detach: bool, output: str, **asked: Any) -> None:
    """Hold GPUs for a time, without a command: to debug, to reserve, to look at one.

    Without --memory it holds whole GPUs, alone. It stays until Ctrl-C or --for; with --detach it
    goes on in the background, also after this shell has ended. Programs elsewhere use the GPUs with
    the environment that it prints.

    \b
    Examples:
      gpu-broker hold --gpus 1 --for 4h --note 'debugging'
      gpu-broker hold --gpus 2 --for 4h --detach
      gpu-broker extend TOKEN 2h; gpu-broker release TOKEN
    """
    if detach and not for_s:
        raise click.UsageError("--detach needs an end: --for 4h")
    ask = asked_in(asked)
    if not asked["memory"] and asked["gpus"] == 1:
        ask["exclusive"] = True
    wanted = Hold("hold", asked["agent"], ask, asked["store_timeout_s"], for_s)
    (in_background if detach else in_foreground)(wanted, output)
