"""The operators' verbs, without the waiting: see `protocol` for how such a generator is driven."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from agent_sdk.errors import error_for
from agent_sdk.protocol.lease import PROTOCOL, Answer, Call, failure, refusal_for_host
from agent_sdk.protocol.validation import check_whole, check_words

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Unpack


class Policy(TypedDict, total=False):
    """What an operator may set.

    safe_mode: no GPU leases, and nothing else can be set while it is on.
    max_memory_per_agent_mb: MiB that one agent may hold, at least 256.
    allow_fractional_shares: False: every lease takes whole devices.
    kill_on_oom: an over-using process may be ended before its neighbours die.
    default_memory_mb: MiB of a lease that names none.
    expiry_grace_s: how long an expired lease's memory is withheld on real devices.
    max_leases_per_agent, max_waiters_per_agent: against a runaway client.
    idle_action, overuse_action, squatter_action, orphan_action: what hosts do about what they
        find: observe (show it), notify (tell the holder and the log), enforce (end it).
    idle_after_s: for how long a lease does nothing before it is idle.
    enforce_after_s: from the finding to its end, where that is enforced.
    overuse_slack_mb: MiB by which a lease may use more than it holds.
    xid_actions: `code=ignore|suspect|probe|hold` by commas, before NVIDIA's table; empty = none.
    reservation_idle_s: how long GPUs reserved for one that waits may go unused; 0 = none is.
    forget_devices_after_s: a device without a lease that its own host has not listed for so long
        leaves the pool.
    forget_hosts_after_s: a host without a lease that has been silent for so long leaves it.
    """

    safe_mode: bool
    max_memory_per_agent_mb: int
    allow_fractional_shares: bool
    kill_on_oom: bool
    default_memory_mb: int
    expiry_grace_s: int
    max_leases_per_agent: int
    max_waiters_per_agent: int
    idle_action: str
    overuse_action: str
    squatter_action: str
    orphan_action: str
    idle_after_s: int
    enforce_after_s: int
    overuse_slack_mb: int
    xid_actions: str
    reservation_idle_s: int
    forget_devices_after_s: int
    forget_hosts_after_s: int


def revoke(token: str, *, force: bool, by: str, why: str) -> Generator[Call, Answer, int]:
    """End a lease: at its holder's next renewal, within a minute at the latest; `force`: now.

    Returns:
        When it ends at the latest, ms on Redis's clock.

    Raises:
        UnknownToken: nothing is known of it.
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
    """Let a device, or a host with all it has, take no new leases; or let it take them again.

    Returns:
        How many devices that were.
    """
    answer = yield Call("drain", (PROTOCOL, what, name, int(drained), by, why))
    match answer.raw:
        case ["DRAINED" | "UNDRAINED", _, _, _, _, int(devices)]:
            return devices
        case _:
            raise refusal_for_host(answer, None, name)


def forget(what: str, name: str, *, by: str, why: str) -> Generator[Call, Answer, int]:
    """Take a device, or a host with all it has, out of the pool now.

    Returns:
        How many devices that were.

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


def set_policy(by: str, **policy: Unpack[Policy]) -> Generator[Call, Answer, int]:
    """Change the policy; what is not named stays. All of it or nothing.

    Returns:
        The policy's new version.
    """
    said: list[str | int] = []
    for field, value in policy.items():
        if isinstance(value, str):
            said += (field, check_words(value, field))
        else:
            whole = int(value) if isinstance(value, bool) else value
            said += (field, check_whole(whole, field))
    answer = yield Call("set_policy", (PROTOCOL, by, *said))
    match answer.raw:
        case ["POLICY", _, _, _, _, int(version)]:
            return version
        case _:
            raise failure(answer, None)
