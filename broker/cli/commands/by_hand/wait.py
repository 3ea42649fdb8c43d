"""`gpu-broker wait`: the grant, or the end, of a lease."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from agent_sdk.errors import CODES, BrokerUnavailable, OutcomeUnknown, error_for
from agent_sdk.state.queue import WaiterStatus
from broker.cli import FAILED, NOT_IN_TIME
from broker.cli.complete import tokens
from broker.cli.follow import Follower, last_of
from broker.cli.names import whole_token
from broker.cli.store import output_option, pool_client, show
from broker.text.screen import say
from broker.text.table import age, gib
from broker.text.units import Duration

if TYPE_CHECKING:
    from agent_sdk import LeaseClient
    from agent_sdk.state.snapshot import LeaseStatus

TO_ITS_HOLDER: Final = "the lease is gone: stop using the GPU, "
"""Beginning of sentences about an end, for the process that had the lease."""

LOOK_S: Final = 5.0
"""Most seconds between two looks at the token itself; its events bring one at once."""

AWAY_S: Final = 0.5
"""Seconds between two tries while the store is away."""

FORGOTTEN_S: Final = 75.0
"""Seconds for which a token is unknown that is over: a store that has lost data comes to know it
again while the pool is closed, which is for a minute at most.
"""


@click.command()
@click.argument("token", shell_complete=tokens)
@click.option("--end", is_flag=True, help="Wait for the end of the lease or of the wait.")
@click.option("--timeout", "timeout_s", type=Duration(), help="End with 75 after so long: 10m.")
@click.option(
    "--store-timeout", "store_timeout_s", type=Duration(), default=300.0,
    help="End with 69 when the store is away for so long during the wait (default 5m).",
)  # fmt: skip
@output_option()
def wait(
    token: str, end: bool, timeout_s: float | None, store_timeout_s: float, output: str
) -> None:
    """Wait until a waiter has its lease; with --end until a lease, or a wait, has ended.

    The exit code is 0 when that has come, 1 when a wait ended without a lease, 75 after --timeout.
    The first eight letters of the token are enough.

    \b
    Examples:
      gpu-broker wait 5a37a41f && echo 'its turn'
      gpu-broker wait 06909f65 --end --timeout 10m
      gpu-broker queue -o name | xargs -rn1 gpu-broker wait
    """
    with pool_client() as client:
        token = whole_token(client, token)
        if client.lookup(token) is None:
            raise error_for("unknown_token", f"nothing is known of a token {token}", token=token)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        found = _changed(client, token, end=end, until=until, away_s=store_timeout_s)
    if found is None:
        still = "has not ended" if end else "has no lease"
        say(
            f"gpu-broker: {token[:8]} {still} after {age(round((timeout_s or 0) * 1000))}", err=True
        )
        sys.exit(NOT_IN_TIME)
    if isinstance(found, str):
        says = CODES[found].says.removeprefix(TO_ITS_HOLDER)
        text = f"{token[:8]} has ended: {says}"
        show(output, text, {"token": token, "state": "ended", "outcome": found})
        sys.exit(0 if end else FAILED)
    text, data = _lease_in_words(found), asdict(found)
    show(output, text, {"token": token, "state": "active", "lease": data})


def _changed(
    client: LeaseClient, token: str, *, end: bool, until: float | None, away_s: float
) -> LeaseStatus | str | None:
    """Return the lease of a token, without `end`, or its outcome; None: neither came in time.

    Raises:
        LeaseError: the store was away for `away_s` seconds, or denies the call.
    """
    seen_at = known_at = time.monotonic()
    while True:
        try:
            with Follower(client, last_of(client.events(1))) as news:
                while True:
                    found = client.lookup(token)
                    seen_at = time.monotonic()
                    known_at = known_at if found is None else seen_at
                    told = _told(found, seen_at - known_at, end=end)
                    if told is not None:
                        return told
                    if not _news(news, token, until):
                        return None
        except (BrokerUnavailable, OutcomeUnknown) as error:
            now = known_at = time.monotonic()
            if until is not None and now >= until:
                say(f"gpu-broker: {error}", err=True)
                return None
            if now - seen_at > away_s:
                raise
            time.sleep(AWAY_S if until is None else min(AWAY_S, until - now))


def _told(
    found: LeaseStatus | WaiterStatus | str | None, unknown_s: float, *, end: bool
) -> LeaseStatus | str | None:
    """Return what ends the wait, or None while it goes on."""
    if found is None:  # its tombstone is gone, too
        return "expired" if unknown_s > FORGOTTEN_S else None
    if isinstance(found, str):
        return found
    return None if end or isinstance(found, WaiterStatus) else found


def _news(news: Follower, token: str, until: float | None) -> bool:
    """Wait for an event of the token, or a while; return False once the time is over."""
    look_at = time.monotonic() + LOOK_S
    end = look_at if until is None else min(look_at, until)
    while (left_s := end - time.monotonic()) > 0:
        seen = news.wait(left_s)
        if seen.gap or any(event.token == token for event in seen.events):
            return True
    return until is None or time.monotonic() < until


def _lease_in_words(lease: LeaseStatus) -> str:
    places = " ".join(uuid for uuid, _ in lease.devices) or "the CPU"
    return f"{lease.token[:8]} has its lease: {gib(lease.memory_mb)} on {places}"
