"""Takeover of a lease by its token, in a process that did not acquire it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_sdk.errors import error_for
from agent_sdk.protocol.lease import renew
from agent_sdk.protocol.messages import Answer, Call, Device, Grant, Read, RecoveryClaim, Renewal
from agent_sdk.protocol.replies import of_known_form, whole
from agent_sdk.state import queue
from agent_sdk.state.queue import WaiterStatus
from agent_sdk.state.readings import text

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys
    from agent_sdk.state.snapshot import LeaseStatus

FACTS: Final = ("index", "host", "name", "total_mb", "used_mb", "runtime_id")
"""Fields of a device that a grant tells of."""


def adopt(keys: Keys, token: str) -> Generator[Call | Read, Answer, tuple[Grant, Renewal]]:
    """Renew a lease as it was granted, and read its devices; return the renewal, too.

    Raises:
        LeaseLost: it has ended; the code has the outcome.
        StillWaiting: it is still in the queue.
        UnknownToken: the token is unknown.
    """
    found = yield from queue.lookup(keys, token)
    if isinstance(found, WaiterStatus):
        raise error_for("waiting", token=token)
    if found is None or isinstance(found, str):
        raise error_for(found or "unknown_token", token=token)
    renewal = yield from renew(token, found.fence, None)
    answer = yield Read(
        (("HGET", keys.pool, "epoch"), ("HMGET", keys.record(token), "devices", "request", "team"))
    )
    claim = _claim(answer, found)
    devices = yield from _devices(keys, found.devices)
    grant = Grant(
        token=token,
        agent=found.agent,
        fence=found.fence,
        expires_at_ms=renewal.expires_at_ms,
        remaining_ms=renewal.remaining_ms,
        ttl_ms=found.ttl_ms,
        reason=found.reason,
        devices=devices,
        trusted_until=renewal.trusted_until,
        claim=claim,
    )
    return grant, renewal


def _devices(
    keys: Keys, held: tuple[tuple[str, int], ...]
) -> Generator[Read, Answer, tuple[Device, ...]]:
    """Return the SDK's Device for each (device id, MiB)."""
    if not held:
        return ()
    answer = yield Read(tuple(("HMGET", keys.device(uuid), *FACTS) for uuid, _ in held))
    return _told(answer, held)


@of_known_form
def _claim(answer: Answer, lease: LeaseStatus) -> RecoveryClaim | None:
    epoch, (taken, request, team) = answer.raw
    if not request:
        return None
    said = (text(epoch), lease.agent, text(taken), text(request), lease.client, lease.pid)
    return RecoveryClaim(*said, team or "")


@of_known_form
def _told(answer: Answer, held: tuple[tuple[str, int], ...]) -> tuple[Device, ...]:
    return tuple(
        Device(
            uuid,
            int(index),
            text(host),
            text(name),
            memory_mb,
            int(total_mb or 0),
            whole(used_mb or ""),
            text(runtime_id or ""),
        )
        for (uuid, memory_mb), (index, host, name, total_mb, used_mb, runtime_id) in zip(
            held, answer.raw, strict=True
        )
    )
