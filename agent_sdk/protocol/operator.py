"""Operators' verbs, without the waiting: see `protocol.lease` for driving such a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.errors import error_for
from agent_sdk.policy import to_store
from agent_sdk.protocol.messages import PROTOCOL, Answer, Call
from agent_sdk.protocol.replies import failure, refusal_for_host
from agent_sdk.teams import policy as policies

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import Unpack

    from agent_sdk.policy import Policy
    from agent_sdk.teams.policy import TeamPolicy


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

    A divided GPU is named for all its parts.

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


def set_teams(
    teams: Mapping[str, TeamPolicy | Mapping[str, object]], *, by: str, version: int | None
) -> Generator[Call, Answer, int]:
    """Set the policies of all teams, all of them or none; a team that is not named has none.

    version: of the policy that it was written against; None: any.

    Returns:
        The policy's new version.

    Raises:
        BadRequest: a name, a field or a value is wrong.
        Conflict: the policy has another version by now.
    """
    against = "" if version is None else version
    answer = yield Call("set_teams", (PROTOCOL, by, against, *policies.to_store(teams)))
    match answer.raw:
        case ["POLICY", _, _, _, _, int(new)]:
            return new
        case _:
            raise failure(answer, None)


def apply_policy(
    policy: Policy,
    teams: Mapping[str, TeamPolicy | Mapping[str, object]] | None,
    *,
    by: str,
    version: int | None,
) -> Generator[Call, Answer, int]:
    """Set fields of the policy and, unless None, the policies of all teams, as one version.

    version: of the policy that they were written against; None: any.

    Returns:
        The policy's new version.

    Raises:
        BadRequest: a name, a field or a value is wrong.
        Conflict: the policy has another version by now.
    """
    words = to_store(policy)
    if version is not None:
        words += ("version", version)
    if teams is not None:
        words += ("teams", len(teams), *policies.to_store(teams))
    answer = yield Call("set_policy", (PROTOCOL, by, *words))
    match answer.raw:
        case ["POLICY", _, _, _, _, int(new)]:
            return new
        case _:
            raise failure(answer, None)


def extend_hold(
    token: str, hold_ms: int, *, by: str, owner: str = ""
) -> Generator[Call, Answer, int | None]:
    """Set how long a lease may be held from now on; 0: without limit.

    by: the operator; empty: its holder, whose team's max_hold_s counts from the grant.

    Returns:
        The limit of all renewals, ms on Redis's clock; None: there is none.

    Raises:
        UnknownToken: the lease is unknown.
        LeaseLost: it has ended.
        TeamLimit: its team may not hold a lease for so long.
        NoCapacity: what it has is reserved for a request that waits, and lent for less.
    """
    more = (owner,) if owner else ()
    answer = yield Call("extend", (PROTOCOL, token, hold_ms, by, *more), token)
    match answer.raw:
        case ["EXTENDED", _, _, _, _, int(hold_until_ms)]:
            return hold_until_ms or None
        case ["REFUSED", int(now_ms), _, _, _, "no_capacity", str(lent_ms)] if lent_ms.isdecimal():
            left_s = max(0, int(lent_ms) - now_ms) // 1000
            says = (
                "what it has is reserved for a request that has waited long, and lent to it for "
                f"{left_s} s more at most; an operator may extend it all the same"
            )
            raise error_for("no_capacity", says, token=token)
        case ["ALREADY", _, _, _, _, str(outcome)]:
            raise error_for(outcome, token=token)
        case _:
            raise failure(answer, token)


def request_yield(token: str, waiter: str, *, owner: str = "") -> Generator[Call, Answer, bool]:
    """Ask a lease's holder to give it up, for a waiter; declining costs the holder nothing.

    owner: the principal whose waiter it must be; empty: any.

    Returns:
        True: its holder will be told; False: it takes no such requests (`yields`).

    Raises:
        UnknownToken: no such lease is granted, or no such request waits.
    """
    more = (owner,) if owner else ()
    answer = yield Call("ask", (PROTOCOL, token, waiter, *more), token)
    match answer.raw:
        case ["ASKED", *_]:
            return True
        case ["DECLINED", *_]:
            return False
        case _:
            raise failure(answer, token)
