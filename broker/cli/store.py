"""Connection of the commands to the store, and their sentences about its failures."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from redis.exceptions import AuthenticationError, NoPermissionError

from agent_sdk.client import LeaseClient
from agent_sdk.errors import (
    BadRequest,
    BrokerUnavailable,
    Denied,
    LeaseError,
    OutcomeUnknown,
    UnknownToken,
    error_for,
)
from agent_sdk.settings import read_settings
from agent_sdk.store.quick import QuickStore
from broker.cli import DENIED, FAILED, UNAVAILABLE
from broker.cli.own_words import in_options
from broker.identity import user_at_host
from broker.text.screen import one_line, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from redis.exceptions import RedisError

DEADLINE_S = 1.0
"""Seconds that a restarting server is asked again for: a person is waiting."""

START_ONE = "Start one with: gpu-broker serve, or name its server in REDIS_URL"

START_THAT = "Start that server, or name one that suits in REDIS_URL"
"""Way out where a server is named: gpu-broker serve starts none then."""

WAYS_OUT = {
    "closed": "It opens by itself, within a minute: try again then",
    "not_ready": "Or gpu-broker host on a machine with GPUs; REDIS_URL and GPU_BROKER_POOL name"
    " another pool",
    "denied": "Name a user that may, with its password, in REDIS_URL=redis://USER:PASSWORD@HOST:PORT;"
    " or give this one the right (ACL SETUSER)",
    "outcome_unknown": "Try again: gpu-broker leases shows what was done",
    "store_full": "Raise maxmemory of the store; what gives back goes on meanwhile",
    "unknown_token": "gpu-broker leases and gpu-broker queue list what lives; a token is known for"
    " 15 minutes after its end",
}
"""Ways out, by code, where starting another store would not help."""

SCHEMA = 1
"""Schema number of all printed JSON: fields are added under the same number, never changed."""


@contextmanager
def pool_client() -> Iterator[LeaseClient]:
    """Connect to the environment's pool; errors end the command with a sentence."""
    try:
        with connect("gpu-broker", DEADLINE_S) as client:
            client.by = user_at_host()
            yield client
    except (LeaseError, ValueError) as error:
        text = in_options(str(error)) if isinstance(error, BadRequest) else str(error)
        say(f"gpu-broker: {text}", err=True)
        if isinstance(error, (BrokerUnavailable, OutcomeUnknown, Denied)):
            say(way_out(error), err=True)
            sys.exit(DENIED if isinstance(error, Denied) else UNAVAILABLE)
        if isinstance(error, UnknownToken):
            say(way_out(error), err=True)
        sys.exit(FAILED)


def connect(client_name: str, deadline_s: float) -> LeaseClient:
    """Return a client of the environment's pool, which starts without redis-py where that will do.

    Raises:
        ValueError: a setting is wrong, or the embedded store's folder is another user's.
    """
    settings = read_settings()
    settings.check_state_dir()
    client = LeaseClient(
        QuickStore(settings.store_url),
        pool=settings.pool,
        client_name=client_name,
        hostname=settings.hostname,
        deadline_s=deadline_s,
    )
    client.reminds = False  # its thread would be there before a command is forked
    return client


def way_out(error: LeaseError) -> str:
    """Return a sentence about the way out when a pool does not answer as it should."""
    start = START_ONE if read_settings().embedded else START_THAT
    return WAYS_OUT.get(error.code, start)


def lease_error(error: RedisError) -> LeaseError:
    """Return the SDK's error for redis-py's: the store denies the call, or is away."""
    if isinstance(error, (AuthenticationError, NoPermissionError)):
        return error_for("denied")
    return error_for("store_unavailable", f"Redis cannot be reached: {error}")


def output_option(*more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `-o text|json`, with the further forms in `more`."""
    says = {
        "wide": "more columns",
        "name": "names alone, one a line",
        "yaml": "a file for policy apply",
        "csv": "a line for each, with a head",
        "jsonl": "JSON, an object a line",
    }
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json", *more]),
        default="text",
        help="; ".join(["How to print: text for people, json for programs",
                        *(f"{word}: {says[word]}" for word in more)]) + ".",
    )  # fmt: skip


def show(output: str, text: str, data: dict[str, Any], names: Iterable[str] = ()) -> None:
    """Print the requested form; JSON includes its schema number."""
    if output == "json":
        say(as_json(data, indent=2))
    elif output == "name":
        for name in names:
            say(one_line(name))
    else:
        say(text)


def as_json(data: dict[str, Any], indent: int | None = None) -> str:
    """Return data as JSON with the number of its schema."""
    return json.dumps({"schema": SCHEMA, **data}, indent=indent)
