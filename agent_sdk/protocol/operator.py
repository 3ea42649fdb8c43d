"""Operators' verbs, without the waiting: see `protocol.lease` for driving such a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.errors import error_for
from agent_sdk.policy import to_store
from agent_sdk.protocol.messages import PROTOCOL, Answer, Call
from agent_sdk.protocol.replies import failure, refusal_for_host

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Unpack

    from agent_sdk.policy import Policy


def revoke(token: str, *, force: bool, by: str, why: str) -> Generator[Call, Answer, int]:
    """End a lease: at its holder's next renewal, within a minute at the latest; `force`: now.

    Returns:
        Its latest end, ms on Redis's clock.

    Raises:
        UnknownToken: the lease is unknown.
        LeaseLost: it had ended already.
    """
    answer = yield Call("revoke", (PROTOCOL, token, int(force), by, why), token)
    match answer.raw:
        case ["REVOKED", _, _, _, _, int(expires_at_ms)]:
            return expires_at_ms
        case ["ALREADY", _, _, _, _, str(outcome)]:
            raise error_for(outcome, token=token)
        case _:
            raise failure(answer, token)


def drain(
    what: str, name: str, *, drained: bool, by: str, why: str
) -> Generator[Call, Answer, int]:
    """Stop new leases on a device, or on a host with all its devices; or allow them again.

    Returns:
        The number of devices.
    """
    answer = yield Call("drain", (PROTOCOL, what, name, int(drained), by, why))
    match answer.raw:
        case ["DRAINED" | "UNDRAINED", _, _, _, _, int(devices)]:
            return devices
        case _:
            raise refusal_for_host(answer, None, name)


def forget(what: str, name: str, *, by: str, why: str) -> Generator[Call, Answer, int]:
    """Remove a device, or a host with all its devices, from the pool now.

    Returns:
        The number of devices.

    Raises:
        InUse: a lease is on it, or the memory of one that ended is not free yet.
    """
    forgotten = 0
    while True:
        answer = yield Call("forget", (PROTOCOL, what, name, by, why))
        match answer.raw:
            case ["FORGOTTEN", _, _, _, _, int(devices), int(left)]:
                forgotten += devices
                if not left:
                    return forgotten
            case _:
                raise refusal_for_host(answer, None, name)


def release_driver(host: str, *, for_ms: int, by: str, why: str) -> Generator[Call, Answer, int]:
    """Make a host's reporter let go of its driver for so long, or take it again: 0.

    Returns:
        The time until which it is let go, ms on Redis's clock; 0: it is not.
    """
    answer = yield Call("release_driver", (PROTOCOL, host, for_ms, by, why))
    match answer.raw:
        case ["DRIVER", _, _, _, _, int(until_ms)]:
            return until_ms
        case _:
            raise refusal_for_host(answer, None, host)


def set_policy(by: str, **policy: Unpack[Policy]) -> Generator[Call, Answer, int]:
    """Change the named fields of the policy, all of them or none.

    Returns:
        The policy's new version.

    Raises:
        BadRequest: a field is unknown, or takes no such value.
    """
    answer = yield Call("set_policy", (PROTOCOL, by, *to_store(policy)))
    match answer.raw:
        case ["POLICY", _, _, _, _, int(version)]:
            return version
        case _:
            raise failure(answer, None)
