"""Get the lease, and say how the wait goes while it lasts."""

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
from agent_sdk.lease import Lease
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
"""Between two words about the wait."""

FIRST_LOOK_S, LAST_LOOK_S = 1.0, 15.0
"""Between two looks at why it waits: the second is twice the first, and so on up to the last."""


def get_lease(client: LeaseClient, agent: str, ask: LeaseOptions, teller: Progress) -> Lease:
    """The lease, or one on the CPU if that was asked for. Leaves nothing behind when it raises.

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
            if error.code != "lapsed" or local_now() >= until:
                raise
            continue  # the store was away for longer than a place is kept: stand in line anew
        except (Refused, BrokerUnavailable):  # nothing was done, or its place lapses by itself
            raise
        except BaseException:  # Ctrl-C, or nobody answered: it may stand in the line
            with suppress(LeaseError):
                client.release(token)
            raise
        teller.granted(lease, local_now() - began, _why_on_cpu(client, lease, ask))
        return lease


def _why_on_cpu(client: LeaseClient, lease: Lease, ask: LeaseOptions) -> str | None:
    """Return a code, or which host has no GPUs: a name that is not right is to be seen at once."""
    if lease.reason != "host_unknown":
        return lease.reason
    return look_for(client, ask.get("host") or read_settings().hostname)


@contextmanager
def _shown(client: LeaseClient, token: str, began: float, teller: Progress) -> Iterator[None]:
    """While the block lasts a thread says how the wait goes."""
    over = threading.Event()

    def show() -> None:
        why: Explanation | LeaseError | None = None
        look_at, pause_s = 0.0, FIRST_LOOK_S
        while not over.wait(TICK_S):
            now = local_now()
            if now >= look_at:
                try:
                    why = client.explain(token)
                except UnknownToken:
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
