"""Verbs of holders and waiters, without the waiting: acquire, renew, release, reap.

Each verb is a generator that yields what to do (`Call`: run a verb's script; `Read`: commands in
one pipeline; `Pause`: wait for a hint, or a while), is sent the answer, and returns a result or
raises a `LeaseError`. `client` and `aio` drive the same generators and differ in how they wait.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError, StillWaiting
from agent_sdk.protocol.messages import (
    PROTOCOL,
    Answer,
    Call,
    Exchange,
    Giving,
    Grant,
    Moment,
    Pause,
    RecoveryClaim,
    ReleaseResult,
    Renewal,
    Request,
)
from agent_sdk.protocol.replies import (
    each_renewal,
    failure,
    granted,
    moment,
    of_known_form,
    refusal_for_host,
    renewed,
    unknown,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

MOST_AT_ONCE: Final = 256
"""Most leases of one `renew_many`, as in lua/renew_many.lua."""

HEARTBEAT_MS: Final = 10_000
"""Milliseconds of silence after which a waiter loses its place."""

FIRST_POLL_S: Final = 3.0
"""Most seconds between polls of a queue's head: its poll finds what no script could."""

OTHERS_POLL_S: Final = (6.5, 8.5)
"""Seconds between polls of other waiters, as a heartbeat; a range, so that they spread."""

OVERDUE_POLL_S: Final = 0.25
"""Seconds between polls while something has ended that may not be taken back yet."""

NEW_POOL_S: Final = 1.0
"""Seconds between polls of a store that has lost the pool, until a host reports to a new one."""


def acquire(
    request: Request,
    until: float = 0.0,
    *,
    keep_place: bool = False,
    giving: Giving | None = None,
) -> Generator[Call | Exchange | Pause, Answer, Grant]:
    """Ask for a lease, and wait for it in the queue; in that of a new pool, if this one is lost.

    Args:
        request: the request; its `wait_ms` is the rest of the wait.
        until: the end of the wait on `clocks.local_now`'s clock. The last call decides.
        keep_place: at the end stay in the queue and raise StillWaiting, without a decision.
        giving: a lease to give back just before.

    Raises:
        Refused, BrokerUnavailable: with the reason.
        LeaseLost: this token's lease is over already, or its place in the queue is lost.
    """
    queued = False
    while True:
        answer = yield Exchange(giving, request.call()) if giving else request.call()
        giving = None
        match answer.raw:
            case ["GRANTED", _, _, _, _, _, int(), int(), *_]:
                return granted(request, answer)
            case ["AGAIN", *_] | ["WAITING", _, _, _, 1, _]:
                # More has ended than one script takes back: a full pool may not be full.
                yield from reap_all()
            case ["WAITING", _, _, _, _, int(place)]:
                left_s = max(0.0, until - local_now())
                if keep_place and left_s == 0.0:
                    raise StillWaiting("waiting", token=request.token, place=place)
                yield Pause(request.token, min(left_s, poll_s(moment(answer), place)), left_s)
                queued = True
            case _:
                error = refusal_for_host(answer, request.token, request.host, request.team)
                left_s = until - local_now()
                if error.code != "not_ready" or not queued or left_s <= 0:
                    raise error
                yield Pause(request.token, min(left_s, NEW_POOL_S), left_s)
        request = request._replace(wait_ms=left_ms(until, keep_place=keep_place))


def left_ms(until: float, *, keep_place: bool = False) -> int:
    """Return the rest of a wait; with `keep_place` at least the time for which a place lasts."""
    left = max(0, math.ceil((until - local_now()) * 1000))
    return left + HEARTBEAT_MS if keep_place else left


@of_known_form
def poll_s(seen: Moment, place: int) -> float:
    """Return the seconds until a waiter asks again without a hint; `place`: waiters ahead of it.

    The head of a queue has ended leases taken back where no broker does.
    """
    if place > 0:
        return random.uniform(*OTHERS_POLL_S)
    if seen.next_deadline_ms is None:
        return FIRST_POLL_S
    due_s = (seen.next_deadline_ms - seen.now_ms + 2) / 1000
    return min(FIRST_POLL_S, due_s if due_s > 0 else OVERDUE_POLL_S)


def renew_call(
    token: str,
    fence: int | None,
    ttl_ms: int | None,
    owner: str = "",
    claim: RecoveryClaim | None = None,
) -> Call:
    """Return the call that renews one lease.

    claim: only after `unknown` was answered, and while the holder may believe in the lease.
    """
    fence_or_any, ttl_or_same = "" if fence is None else fence, "" if ttl_ms is None else ttl_ms
    more = _owned(owner) if claim is None else (owner, *claim)
    return Call("renew", (PROTOCOL, token, fence_or_any, ttl_or_same, *more), token)


def _owned(owner: str) -> tuple[str, ...]:
    """Return the argument by which a script compares the owner; empty: any owner."""
    return (owner,) if owner else ()


def renew(
    token: str,
    fence: int | None,
    ttl_ms: int | None,
    owner: str = "",
    claim: RecoveryClaim | None = None,
) -> Generator[Call, Answer, Renewal]:
    """Renew one lease, with its claim if the pool has forgotten it; see `renewed`."""
    answer = yield renew_call(token, fence, ttl_ms, owner)
    if claim and unknown(answer.raw):
        answer = yield renew_call(token, fence, ttl_ms, owner, claim)
    return renewed(answer, token)


def renew_many_call(leases: Iterable[tuple[str, int | None, int | None]], owner: str = "") -> Call:
    """Return the one call that renews many leases: of each its token, fence and ttl_ms.

    `MOST_AT_ONCE` at most; see `each_renewal` for its answer.
    """
    flat = [
        part
        for token, fence, ttl_ms in leases
        for part in (token, "" if fence is None else fence, "" if ttl_ms is None else ttl_ms)
    ]
    return Call("renew_many", (PROTOCOL, owner, *flat))


def renew_many(
    leases: Sequence[tuple[str, int | None, int | None]], owner: str = ""
) -> Generator[Call, Answer, list[Renewal | LeaseError]]:
    """Renew many leases by one call: of each, in their order, its renewal or its error.

    They are fewer than were asked for where that was beyond one script's work.

    Raises:
        Refused, BrokerUnavailable: the call as a whole was refused, and nothing changed.
    """
    answer = yield renew_many_call(leases, owner)
    found: list[Renewal | LeaseError] = []
    for (token, *_), raw in zip(leases, each_renewal(answer), strict=False):
        try:
            found.append(renewed(Answer(raw, answer.sent_at), token))
        except LeaseError as error:
            found.append(error)
    return found


def release_call(token: str, *, plant: bool = True, owner: str = "") -> Call:
    """Return the call that gives a lease back. `plant`: refuse an unknown token from now on."""
    return Call("release", (PROTOCOL, token, int(plant), *_owned(owner)), token)


def release(
    token: str, *, plant: bool = True, owner: str = ""
) -> Generator[Call, Answer, ReleaseResult]:
    """Give a lease back. `plant`: refuse an unknown token from now on."""
    return released((yield release_call(token, plant=plant, owner=owner)), token)


def released(answer: Answer, token: str) -> ReleaseResult:
    """Return the result of a release by its answer."""
    match answer.raw:
        case ["RELEASED", *_]:
            return ReleaseResult(by_this_call=True, outcome="released")
        case ["ALREADY", _, _, _, _, str(outcome)]:
            return ReleaseResult(by_this_call=False, outcome=outcome)
        case ["UNKNOWN", *_]:
            return ReleaseResult(by_this_call=False, outcome="unknown_token")
        case _:
            raise failure(answer, token)


def reap(seen_ms: int = 0) -> Generator[Call, Answer, Moment]:
    """Take ended leases back, as many as one script may.

    seen_ms: `now_ms` of the caller's last reply: a pool that has forgotten it says so to all.
    """
    answer = yield Call("reap", (PROTOCOL, seen_ms))
    match answer.raw:
        case ["REAPED", *_]:
            return moment(answer)
        case _:
            raise failure(answer, None)


def reap_all() -> Generator[Call, Answer, Moment]:
    """Take all ended leases back."""
    while (seen := (yield from reap())).more:
        pass
    return seen
