"""Options of a request for a lease, which several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from agent_sdk.protocol.messages import LONGEST_TTL_MS
from broker.cli.complete import hosts
from broker.text.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_sdk.request import LeaseOptions

    Function = Callable[..., Any]
    Decorator = Callable[[Function], Function]

FOREVER_S: Final = LONGEST_TTL_MS / 1000
"""Longest wait, in seconds: a week."""


def request_options(*, here: str, wait: str) -> Decorator:
    """Return the options of what is asked for; `asked_in` reads them.

    Args:
        here: the reason for which the default host is this machine.
        wait: the default of `--wait`, as a sentence.
    """
    asks = (
        click.option(
            "--memory", type=Size(), default=0, help="On each GPU: 8GiB, 8g, 512MiB, 8192 (MiB)."
        ),
        click.option("--gpus", type=click.IntRange(1, 64), default=1, help="Several whole GPUs."),
        click.option("--exclusive", is_flag=True, help="Alone on the GPU."),
        click.option("--model", help="The exact name of a model, as status shows it; default any."),
        click.option("--host", help=f"Default this machine: {here}", shell_complete=hosts),
        click.option(
            "--placement",
            type=click.Choice(["spread", "pack"]),
            default="spread",
            help="The emptiest GPU first (default), or the fullest that fits.",
        ),
    )
    return _added((*asks, *_waiting(wait), *_held()))


def _waiting(wait: str) -> tuple[Decorator, ...]:
    """Return the options of the wait."""
    return (
        click.option(
            "--wait",
            "wait_s",
            type=Duration(FOREVER_S),
            help=f"Wait at most so long: 30s, 10m, 2h; 0 = not at all. {wait}",
        ),
        click.option(
            "--priority", type=click.IntRange(0, 9), default=0, help="In the queue, 9 first."
        ),
        click.option(
            "--store-timeout",
            "store_timeout_s",
            type=Duration(),
            default=300.0,
            help="End with 69 when the store is away for so long during the wait (default 5m).",
        ),
    )


def _held() -> tuple[Decorator, ...]:
    """Return the options of the lease, once it is granted."""
    return (
        click.option(
            "--time", "max_hold_s", type=Duration(), default=0.0, help="Hold it no longer: 2h."
        ),
        click.option(
            "--ttl",
            "ttl_s",
            type=Duration(FOREVER_S),
            default=30.0,
            help="The lease ends so long after its last renewal: after a crash of this machine, or "
            "when the store is away for longer (default 30s).",
        ),
        click.option("--agent", help="The agent that asks; default user@host."),
        click.option(
            "--team",
            help="The team whose quota it counts for: within that quota it comes before all that "
            "borrow. Default GPU_BROKER_TEAM, else default.",
        ),
        click.option(
            "--preemptible",
            is_flag=True,
            help="It may be taken back, with notice and at any time, for a request with a right to "
            "its memory: for work that saves its state.",
        ),
        click.option(
            "--after",
            metavar="TOKEN",
            help="The whole token of a lease that was taken back, with whose work this one goes "
            "on: it is not taken back as soon.",
        ),
        click.option(
            "--yields",
            is_flag=True,
            help="Tell me when a waiter wants it (gpu-broker ask); to decline costs nothing.",
        ),
        click.option("--note", default="", help="A line for people, shown beside the lease."),
    )


def _added(options: Sequence[Decorator]) -> Decorator:
    """Return one decorator for all of them, in this order."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def asked_in(values: dict[str, Any]) -> LeaseOptions:
    """Return the request of the values of `request_options`.

    Raises:
        BadParameter: the lease would have no end.
    """
    if values["ttl_s"] <= 0:
        raise click.BadParameter("a lease of a process that may die must end", param_hint="--ttl")
    return {
        "memory": f"{values['memory']}MiB",
        "devices": values["gpus"],
        "exclusive": values["exclusive"],
        "model": values["model"],
        "host": values["host"],
        "placement": values["placement"],
        "priority": values["priority"],
        "max_hold_s": values["max_hold_s"],
        "ttl_s": values["ttl_s"],
        "note": values["note"],
        "team": values["team"],
        "preemptible": values["preemptible"],
        "yields": values["yields"],
        "after": values["after"],
        "wait_s": FOREVER_S if values["wait_s"] is None else values["wait_s"],
    }
