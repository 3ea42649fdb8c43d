"""Transport of renewals over HTTP, and answers of the service in the SDK's own types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_sdk.clock import local_now, trusted_until
from agent_sdk.errors import CODES, LeaseError, error_for
from agent_sdk.http_request import Unanswered
from agent_sdk.protocol.messages import ENDLESS_MS, Device, Grant, Renewal
from agent_sdk.protocol.replies import on_our_clock
from agent_sdk.protocol.validation import milliseconds
from agent_sdk.renewal.redis_transport import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_sdk.http_request import Reply, Web
    from agent_sdk.leases.lease import HeldLease

OK = 200

TURN_S = 1.0
"""Seconds of requests one after another before other leases have their turn."""

UNREADABLE = (KeyError, TypeError, ValueError, ArithmeticError)
"""Errors of reading an answer of another form; Python's JSON takes Infinity for a number."""

NEVER_MS = 2 * ENDLESS_MS
"""Milliseconds left of a lease without expiry."""


class HttpTransport:
    """Transport of a renewer to the service; see `RenewalTransport`.

    Args:
        web: None when none is configured.
        request_timeout: seconds for one request.
    """

    def __init__(self, web: Web | None, request_timeout: float) -> None:
        self._web = web
        self._timeout_s = request_timeout

    def renew(self, leases: Sequence[HeldLease]) -> Iterator[Renewal | LeaseError]:
        """Renew leases one after another, for a second at most; see `RenewalTransport`."""
        web, until = self._reachable(), local_now() + TURN_S
        for lease in leases:
            try:
                yield renew(web, lease, None, local_now() + self._timeout_s)
            except Unanswered as error:
                raise error_for("store_unavailable") from error
            except LeaseError as error:
                yield error
            if local_now() > until:
                return

    def release(self, tokens: Sequence[str]) -> Iterator[bool]:
        """Release tokens; see `RenewalTransport`."""
        web, until = self._reachable(), local_now() + TURN_S
        for token in tokens:
            body = {"token": token, "refuse_late": True}
            try:
                reply = web.ask("POST", "/release", body, until=local_now() + self._timeout_s)
            except Unanswered as error:
                raise error_for("store_unavailable") from error
            yield release_is_final(reply)
            if local_now() > until:
                return

    def memory(self, fence: int) -> Memory:  # noqa: ARG002 - as every link's
        """Return no facts: the broker watches over its store, and recovers no lease for us."""
        return Memory(None)

    def _reachable(self) -> Web:
        if self._web is None:
            raise error_for("store_unavailable")
        return self._web

    def close(self) -> None:
        """Do nothing: no connection is left open between requests."""


def renew(web: Web, lease: HeldLease, ttl_s: float | None, until: float) -> Renewal:
    """Renew one lease; ttl_s None = as at the grant.

    Raises:
        LeaseError: it is lost, or the broker cannot tell.
        Unanswered: no answer came by `until`.
    """
    sent_at = local_now()
    body = {"token": lease.token, "fence": lease.fence, "ttl_s": ttl_s}
    reply = web.ask("POST", "/renew", body, until=until)
    if reply.status != OK:
        raise error_for(code_of(reply), token=lease.token)
    try:
        ends_ms, left_ms = ends_of(reply.body)
        notices = tuple(map(str, reply.body.get("notices", ())))
        left_s, said = reply.body.get("preempt_in_s"), reply.body.get("wanted")
        preempt_at = None if left_s is None else on_our_clock(sent_at, float(left_s) * 1000)
        wanted = None if said is None else (str(said["agent"]), int(said["memory_mb"]))
    except UNREADABLE as error:
        raise error_for("protocol_mismatch") from error
    until = trusted_until(sent_at, left_ms)
    return Renewal(ends_ms, left_ms, until, notices, preempt_at, wanted)


def granted(body: dict[str, Any], agent: str, ttl_s: float, sent_at: float) -> Grant:
    """Return the grant of POST /lease.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: this version does not understand it.
    """
    ends_ms, left_ms = ends_of(body)
    return Grant(
        token=str(body["token"]),
        agent=agent,
        fence=int(body["fence"]),
        expires_at_ms=ends_ms,
        remaining_ms=left_ms,
        ttl_ms=milliseconds(ttl_s, "ttl_s"),
        reason=body["code"],
        devices=tuple(
            Device(
                uuid=str(gpu["uuid"]),
                index=int(gpu["index"]),
                host=str(gpu["host"]),
                name=str(gpu["name"]),
                memory_mb=int(gpu["memory_mb"]),
                total_mb=int(gpu.get("memory_total_mb") or 0),
                used_mb=gpu.get("memory_used_mb"),
                runtime_id=str(gpu.get("runtime_id") or ""),
            )
            for gpu in body["gpus"]
        ),
        trusted_until=trusted_until(sent_at, left_ms),
    )


def ends_of(body: dict[str, Any]) -> tuple[int, int]:
    """Return a lease's end on the broker's clock and its rest, both ms."""
    if body["expires_at"] is None:
        return NEVER_MS, NEVER_MS
    return round(body["expires_at"] * 1000), int(body["expires_in_s"] * 1000)


def code_of(reply: Reply) -> str:
    """Return the reason for an answer without a lease, as a word of `errors.CODES`."""
    if reply.body.get("note") == "SAFE_MODE":
        return "safe_mode"
    code = reply.body.get("code")
    if isinstance(code, str) and code in CODES:
        return code
    return "bad_request" if reply.status == CODES["bad_request"].status else "store_unavailable"


def release_is_final(reply: Reply) -> bool:
    """Return whether a release need not be repeated."""
    return reply.status == OK or not CODES[code_of(reply)].retryable
