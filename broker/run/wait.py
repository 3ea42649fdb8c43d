"""Acquisition of the lease, with messages about the wait."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from agent_sdk.clock import local_now
from agent_sdk.errors import (
    BrokerUnavailable,
    LeaseError,
    LeaseLost,
    Refused,
    SafeMode,
    UnknownToken,
)
from agent_sdk.leases.holder import Lease
from agent_sdk.protocol.messages import new_token
from agent_sdk.request import local_grant
from agent_sdk.settings import read_settings
from broker.text.unknown_host import look_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk import LeaseClient
    from agent_sdk.request import LeaseOptions
    from agent_sdk.state.explain import Explanation
    from broker.run.progress import Progress

TICK_S = 1.0
"""Seconds between two messages about the wait."""

FIRST_LOOK_S, LAST_LOOK_S = 1.0, 15.0
"""Seconds between two questions for the reason of the wait: doubled each time, up to the last."""


def get_lease(client: LeaseClient, agent: str, ask: LeaseOptions, teller: Progress) -> Lease:
    """Return the lease, or a CPU lease if that was asked for; leave nothing behind on an error.

    Raises:
        LeaseError: as `LeaseClient.acquire`.
    """
    began = local_now()
    until = began + ask["wait_s"]
    while True:
        token = new_token()
        now: LeaseOptions = {**ask, "token": token, "wait_s": max(0.0, until - local_now())}
        try:
            with _shown(client, token, began, teller):
                lease = client.acquire(agent, **now)
        except SafeMode as error:
            if ask.get("on_unavailable") != "cpu":
                raise
            lease = Lease(local_grant(agent, token, error), local=True)
        except LeaseLost as error:
            if error.code != "timed_out" or local_now() >= until:
                raise
            continue  # the store was away for longer than a reservation of the place: enqueue anew
        except (Refused, BrokerUnavailable):  # nothing was done, or the place times out by itself
            raise
        except BaseException:  # Ctrl-C, or no answer: it may be in the queue
            with suppress(LeaseError):
                client.release(token)
            raise
        teller.granted(lease, local_now() - began, _why_on_cpu(client, lease, ask))
        return lease


def _why_on_cpu(client: LeaseClient, lease: Lease, ask: LeaseOptions) -> str | None:
    """Return a code, or the host without GPUs: a wrong name must be visible at once."""
    if lease.reason != "host_unknown":
        return lease.reason
    return look_for(client, ask.get("host") or read_settings().hostname)


@contextmanager
def _shown(client: LeaseClient, token: str, began: float, teller: Progress) -> Iterator[None]:
    """Tell of the wait from a thread while the block lasts."""
    if not teller.tells_of_waits:
        yield
        return
    over = threading.Event()

    def show() -> None:
        why: Explanation | LeaseError | None = None
        look_at, pause_s = 0.0, FIRST_LOOK_S
        while not over.wait(TICK_S):
            now = local_now()
            if now >= look_at:
                try:
                    why = client.explain(token)
                except (UnknownToken, LeaseLost):  # it is over: the call itself tells how
                    why = None
                except LeaseError as error:
                    why = error
                look_at, pause_s = now + pause_s, min(2 * pause_s, LAST_LOOK_S)
            if not over.is_set():
                teller.waiting(now - began, why)

    thread = threading.Thread(target=show, name="gpu-lease-wait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(TICK_S)
