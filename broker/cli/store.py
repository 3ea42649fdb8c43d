"""What every command that talks to the store shares: connecting, and what to say when it fails."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from agent_sdk import LeaseClient
from agent_sdk.errors import BrokerUnavailable, Denied, LeaseError, OutcomeUnknown
from broker.cli import DENIED, FAILED, UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 1.5
"""A person is waiting."""

SCHEMA = 1
"""Of all JSON that the commands print: fields are added under the same number, never changed."""


@contextmanager
def pool_client() -> Iterator[LeaseClient]:
    """A client of the pool that the environment names; its errors end the command with a word."""
    try:
        with LeaseClient.from_env(client_name="gpu-broker", deadline_s=DEADLINE_S) as client:
            yield client
    except (LeaseError, ValueError) as error:
        click.echo(f"gpu-broker: {error}", err=True)
        if isinstance(error, (BrokerUnavailable, OutcomeUnknown)):
            click.echo(
                "Start one with: gpu-broker serve, or name its server in REDIS_URL", err=True
            )
            sys.exit(UNAVAILABLE)
        sys.exit(DENIED if isinstance(error, Denied) else FAILED)


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `-o text|json`."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        help="How to print: for people, or for programs.",
    )
    return option(command)


def show(output: str, text: str, data: dict[str, Any]) -> None:
    """Print one or the other."""
    click.echo(json.dumps({"schema": SCHEMA, **data}, indent=2) if output == "json" else text)
