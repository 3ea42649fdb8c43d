"""Errors, each with the present state; one table of code, class and HTTP status.

`LeaseError` is the root. Every error has a `code`, the same word in Lua, Python, JSON, metrics and
docs, and `retryable`: the same call may succeed later without any other change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class LeaseError(Exception):
    """Root of the errors about leases.

    Attributes:
        code: a word of `CODES`, stable and on the wire.
        retryable: the same call may succeed later.
        token: the lease it is about, where there is one.
    """

    def __init__(self, code: str, message: str | None = None, *, token: str | None = None) -> None:
        super().__init__(message or CODES[code].says)
        self.code = code
        self.retryable = CODES[code].retryable
        self.token = token

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process makes the same error of: pools of processes send them."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[LeaseError], args: tuple[Any, ...]) -> LeaseError:
    error = kind.__new__(kind)
    error.args = args
    return error


class NotGrantedInTime(LeaseError, TimeoutError):
    """End of a wait without a lease: `wait_s` is over. It is a `TimeoutError`, too."""


class Refused(LeaseError):
    """Decision of the pool against a call; nothing changed."""


class SafeMode(Refused):
    """Refusal under SAFE_MODE: no GPU is leased."""


class NoCapacity(Refused):
    """Refusal for lack of room on every device now.

    Attributes:
        retry_after_s: seconds until the next lease or host may end; None when unknown.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        token: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message, token=token)
        self.retry_after_s = retry_after_s


class NoCapacityInTime(NoCapacity, NotGrantedInTime):
    """Refusal for lack of room for the whole of a wait."""


class StillWaiting(LeaseError):
    """End of a wait without a decision: ask again with the token, as the place lasts for 10 s.

    Attributes:
        place: waiters ahead in the same queue; -1: the agent is at its cap.
    """

    def __init__(
        self, code: str, message: str | None = None, *, token: str | None = None, place: int = 0
    ) -> None:
        super().__init__(code, message, token=token)
        self.place = place


class NeverFits(Refused):
    """Refusal of a request for which every device is too small: ask for less, or elsewhere."""


class HostUnknown(NeverFits):
    """Refusal of a host without registered devices.

    Attributes:
        asked: the requested host, or empty.
        near: a host with devices and a name that differs by case and domain alone, or empty.
    """

    asked: str = ""
    near: str = ""

    @classmethod
    def of(cls, asked: str, near: str, *, token: str | None = None) -> HostUnknown:
        """Build the error with the requested host, and the nearest one."""
        text = f"host {asked} has no devices in this pool" + (f"; {near} has" if near else "")
        if token is not None:  # of a lease, which may go elsewhere
            text += f" (GPU_BROKER_HOSTNAME={near}, if it is this machine)" if near else ""
            text += '; host="any" asks for any'
        error = cls("host_unknown", text, token=token)
        error.asked, error.near = asked, near
        return error

    @classmethod
    def among(cls, asked: str, hosts: Iterable[str]) -> HostUnknown:
        """Build the error with the nearest name among the hosts with devices."""
        return cls.of(asked, min((x for x in hosts if _plain(x) == _plain(asked)), default=""))


def _plain(host: str) -> str:
    return host.partition(".")[0].lower()


class HostTaken(Refused):
    """Refusal of a reporter: another living one has this host's name.

    Attributes:
        reporter: the identity of the other one.
    """

    reporter: str = ""


class AgentCapExceeded(Refused):
    """Refusal of an agent, its API key or its team at its cap by the policy.

    Attributes:
        party: `agent`, `key NAME` or `team NAME`: the one that is at its cap.
    """

    party: str = "agent"


class AgentCapExceededInTime(AgentCapExceeded, NotGrantedInTime):
    """Refusal of an agent that was at its cap for the whole of a wait."""


class TeamLimit(Refused):
    """Refusal of what a team may never have by the policy of teams; an operator may change that.

    Attributes:
        limit: the limit, as `max_priority=3`; empty: there is no such team.
    """

    limit: str = ""


class InUse(Refused):
    """Refusal to forget a device with a lease, or with memory that is not free yet."""


class BadRequest(Refused):
    """Refusal of a malformed call."""


class Conflict(Refused):
    """Refusal of a token that names another request: a new lease needs a new token."""


class UnknownHook(Refused):
    """Refusal of an unknown webhook's name."""


class UnknownToken(Refused):
    """Refusal of an unknown token."""


class Denied(Refused):
    """Denial by the store's credentials, or by the key at the HTTP API."""


class LeaseLost(LeaseError):
    """End of a lease while its holder believed in it: stop using the GPU. `code` has the reason."""


class OutcomeUnknown(LeaseError):
    """Missing answer; the call may have been executed. Repeat it with the same token."""


class BrokerUnavailable(LeaseError):
    """Failure without any effect: the store, or the broker over HTTP, cannot serve now.

    Fall back to CPU, or try again later.
    """


class ProtocolMismatch(LeaseError):
    """Mismatch between this version and the pool's: upgrade the older one."""


@dataclass(frozen=True, slots=True)
class Code:
    """Row of the closed table: a code's meaning in Python, over HTTP and for people."""

    error: type[LeaseError]
    status: int
    retryable: bool
    says: str


_LOST = "the lease is gone: stop using the GPU"

CODES: dict[str, Code] = {
    "waiting": Code(
        StillWaiting, 202, True, "still in the queue: ask again with the same token within 10 s"
    ),
    "safe_mode": Code(
        SafeMode,
        409,
        False,
        "SAFE_MODE is on: no GPU leases are given; an operator switches it off: "
        "gpu-broker policy set safe_mode=false",
    ),
    "no_capacity": Code(NoCapacity, 409, True, "no device has that much free memory now"),
    "agent_cap": Code(
        AgentCapExceeded, 409, True, "the agent is at its cap (policy max_memory_per_agent_mb)"
    ),
    "limit": Code(AgentCapExceeded, 409, True, "the agent has too many leases or waiters already"),
    "team_unknown": Code(
        TeamLimit,
        409,
        False,
        "the policy has no such team; an operator adds it: gpu-broker policy apply",
    ),
    "team_limit": Code(
        TeamLimit,
        409,
        False,
        "its team may never have that; an operator changes the limit: gpu-broker policy apply",
    ),
    "never_fits": Code(NeverFits, 409, False, "no registered device could ever hold this request"),
    "host_unknown": Code(
        HostUnknown, 409, False, 'that host has no devices here; pass host="any" for any host'
    ),
    "host_taken": Code(HostTaken, 409, True, "another machine reports under this host's name"),
    "device_unknown": Code(NeverFits, 404, False, "no device of that id is registered"),
    "model_unknown": Code(NeverFits, 409, False, "no registered device is of that model"),
    "draining": Code(NoCapacity, 409, True, "the host takes no new leases: it is being drained"),
    "hook_unknown": Code(UnknownHook, 404, False, "no webhook has that name"),
    "in_use": Code(
        InUse, 409, True, "a lease is on it, or its memory is not free yet: revoke it, then repeat"
    ),
    "bad_request": Code(BadRequest, 422, False, "the request is not well-formed"),
    "conflict": Code(Conflict, 409, False, "this token already names another request"),
    "unknown_token": Code(UnknownToken, 404, False, "nothing is known of this token"),
    "denied": Code(Denied, 403, False, "the store denies this to the credentials in use"),
    "unauthorized": Code(
        Denied, 401, False, "a key is needed that this broker knows: Authorization: Bearer gbk_..."
    ),
    "forbidden": Code(Denied, 403, False, "this key may not do that"),
    "expired": Code(LeaseLost, 409, False, f"{_LOST}, it expired"),
    "revoked": Code(LeaseLost, 409, False, f"{_LOST}, an operator revoked it"),
    "preempted": Code(
        LeaseLost, 409, False, f"{_LOST}, it was preempted for a request with a right to its memory"
    ),
    "released": Code(LeaseLost, 409, False, "the lease was released"),
    "cancelled": Code(LeaseLost, 409, False, "the wait was cancelled"),
    "timed_out": Code(LeaseLost, 409, False, "the waiter stopped asking and lost its place"),
    "superseded": Code(LeaseLost, 409, False, f"{_LOST}, another has its place"),
    "unreachable": Code(
        LeaseLost, 409, False, f"{_LOST}, the store could not be reached until trust ran out"
    ),
    "closed": Code(
        BrokerUnavailable,
        503,
        True,
        "the pool may have lost data: holders come first, ask again in some seconds",
    ),
    "not_ready": Code(
        BrokerUnavailable,
        503,
        True,
        "no host has reported to this pool yet: start gpu-broker serve",
    ),
    "store_full": Code(BrokerUnavailable, 503, True, "Redis is at maxmemory: no new leases fit"),
    "store_unavailable": Code(BrokerUnavailable, 503, True, "Redis cannot be reached"),
    "busy": Code(
        BrokerUnavailable, 503, True, "this broker has no room for more: try again in a moment"
    ),
    "outcome_unknown": Code(
        OutcomeUnknown, 503, True, "Redis did not answer; repeat with the same token"
    ),
    "protocol_mismatch": Code(
        ProtocolMismatch, 503, False, "this version and the pool's do not match: upgrade the older"
    ),
}
"""All codes, on the wire and off it."""


def error_for(
    code: str,
    message: str | None = None,
    *,
    token: str | None = None,
    retry_after_s: float | None = None,
) -> LeaseError:
    """Return the exception of a code; an unknown code is a mismatch of versions."""
    if code not in CODES:
        return ProtocolMismatch("protocol_mismatch", f"unknown answer {code!r}", token=token)
    kind = CODES[code].error
    if issubclass(kind, NoCapacity):
        return kind(code, message, token=token, retry_after_s=retry_after_s)
    return kind(code, message, token=token)


def in_time(error: NoCapacity | AgentCapExceeded) -> NotGrantedInTime:
    """Return the refusal that ended a wait as the error for that."""
    if isinstance(error, NoCapacity):
        after_s = error.retry_after_s
        return NoCapacityInTime(error.code, str(error), token=error.token, retry_after_s=after_s)
    found = AgentCapExceededInTime(error.code, str(error), token=error.token)
    found.party = error.party
    return found
