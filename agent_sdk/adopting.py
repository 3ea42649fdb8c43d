"""A lease taken up by its token in a process that did not acquire it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk import waiting_line
from agent_sdk.errors import error_for
from agent_sdk.protocol import Answer, Call, Claim, Device, Grant, Read, renew
from agent_sdk.waiting_line import WaiterStatus

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys


def adopt(keys: Keys, token: str) -> Generator[Call | Read, Answer, Grant]:
    """Renew it as it was granted, and learn what it holds.

    Raises:
        LeaseLost: it is over; the code says how it ended.
        StillWaiting: it stands in the line yet.
        UnknownToken: nothing is known of it.
    """
    found = yield from waiting_line.lookup(keys, token)
    if isinstance(found, WaiterStatus):
        raise error_for("waiting", token=token)
    if found is None or isinstance(found, str):
        raise error_for(found or "unknown_token", token=token)
    renewal = yield from renew(token, found.fence, None)
    answer = yield Read(
        (("HGET", keys.pool, "epoch"), ("HMGET", keys.record(token), "devices", "request"))
    )
    epoch, (taken, request) = answer.raw
    claim = Claim(epoch, found.agent, taken, request, found.client, found.pid) if request else None
    devices = yield from _devices(keys, found.devices)
    return Grant(
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


def _devices(
    keys: Keys, held: tuple[tuple[str, int], ...]
) -> Generator[Read, Answer, tuple[Device, ...]]:
    """(device id, MiB) of each as the SDK's Device."""
    if not held:
        return ()
    answer = yield Read(
        tuple(("HMGET", keys.device(uuid), "index", "host", "name") for uuid, _ in held)
    )
    return tuple(
        Device(uuid, int(index), host, name, memory_mb)
        for (uuid, memory_mb), (index, host, name) in zip(held, answer.raw, strict=True)
    )
