"""Replies to calls: their frame, the grant in them, and the error for a refusal."""

from __future__ import annotations

import time
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from agent_sdk.clock import local_now, trusted_until
from agent_sdk.errors import HostUnknown, LeaseError, NoCapacity, error_for
from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.protocol.messages import (
    Answer,
    Device,
    Grant,
    Moment,
    RecoveryClaim,
    Renewal,
    Request,
)
from agent_sdk.protocol.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Wanted: TypeAlias = tuple[str, int] | None

P = ParamSpec("P")

T = TypeVar("T")

DEVICE_WORDS: Final = 8
"""Words of a grant about each device: id, MiB, index, host, name, total, used, runtime id."""


def words(text: str) -> tuple[str, ...]:
    """Return the words of a comma-separated list."""
    return tuple(filter(None, text.split(",")))


def whole(text: str | int) -> int | None:
    """Return a number that may be unknown: empty."""
    return None if text == "" else int(text)


_NO_KNOWN_FORM: Final = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Errors of reading a wrong word, type or number, or lists nested without end."""


def of_known_form(read: Callable[P, T]) -> Callable[P, T]:
    """Turn an answer of no known form into its cause: two versions that do not match."""

    @wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except _NO_KNOWN_FORM as error:
            raise error_for("protocol_mismatch", f"unknown answer: {error}") from error

    return reading


@of_known_form
def moment(answer: Answer) -> Moment:
    """Return the frame of a reply."""
    _, now_ms, next_deadline_ms, epoch, more, *_ = answer.raw
    if not isinstance(now_ms, int):
        raise TypeError(f"no time: {now_ms!r}")
    return Moment(
        now_ms, None if next_deadline_ms == "" else int(next_deadline_ms), epoch, bool(more)
    )


@of_known_form
def granted(request: Request, answer: Answer) -> Grant:
    """Return the lease that a reply grants."""
    _, _, _, epoch, _, fence, expires_at_ms, remaining_ms, reason, *flat = answer.raw
    told = [
        (uuid, int(index), host, name, int(mb), int(total), whole(used), runtime_id)
        for uuid, mb, index, host, name, total, used, runtime_id in zip(
            *[iter(flat)] * DEVICE_WORDS, strict=True
        )
    ]

    def devices() -> tuple[Device, ...]:
        return tuple(Device(*each) for each in told)

    def claim() -> RecoveryClaim:
        held = ",".join([f"{each[0]}={each[4]}" for each in told])
        return RecoveryClaim(
            epoch, request.agent, held, request.asked, request.client, request.pid, request.team
        )

    return Grant(
        request.token,
        request.agent,
        int(fence),
        expires_at_ms,
        remaining_ms,
        request.ttl_ms,
        reason or None,
        devices,
        trusted_until(answer.sent_at, remaining_ms),
        claim,
    )


def unknown(raw: object) -> bool:
    """Return whether a renewal was answered with an unknown lease."""
    return isinstance(raw, list) and raw[:1] == ["UNKNOWN"]


@of_known_form
def renewed(answer: Answer, token: str) -> Renewal:
    """Return the result of a renewal by its answer.

    Raises:
        LeaseLost: with the reason.
        UnknownToken: the lease is unknown.
        BrokerUnavailable: not known yet: the pool may have lost data and waits for holders.
    """
    match answer.raw:
        case ["RENEWED", int(now_ms), _, _, _, int(expires_at_ms), int(remaining_ms), str(notice)]:
            until = trusted_until(answer.sent_at, remaining_ms)
            findings, preempt_at_ms, wanted = told_apart(words(notice))
            at = (
                None
                if preempt_at_ms is None
                else on_our_clock(answer.sent_at, preempt_at_ms - now_ms)
            )
            return Renewal(expires_at_ms, remaining_ms, until, findings, at, wanted)
        case ["AGAIN", *_]:
            raise error_for("closed", token=token)
        case _:
            raise failure(answer, token)


def told_apart(notices: tuple[str, ...]) -> tuple[tuple[str, ...], int | None, Wanted]:
    """Return the findings of a renewal's notices, the time of a preemption, and what is wanted."""
    findings, at_ms, wanted = [], None, None
    for word in notices:
        kind, _, rest = word.partition(":")
        if kind == "preempt":
            at_ms = int(rest)
        elif kind == "wanted":
            memory_mb, _, agent = rest.partition(":")
            wanted = (agent, int(memory_mb))
        else:
            findings.append(word)
    return tuple(findings), at_ms, wanted


def on_our_clock(sent_at: float, left_ms: float) -> float:
    """Return the time, by `time.time()`, that is so long after a call was sent: early by its way.

    Args:
        sent_at: on `clock.local_now`'s clock.
        left_ms: ms by the answer.
    """
    return time.time() - (local_now() - sent_at) + left_ms / 1000


@of_known_form
def each_renewal(answer: Answer) -> list[list[Any]]:
    """Return each lease's part of the answer to `renew_many`, in the form of a `renew`'s.

    Raises:
        LeaseError: the call as a whole was refused.
    """
    match answer.raw:
        case ["OUTCOMES", int(now_ms), *_]:
            frame, parts = answer.raw[1:5], answer.raw[5:]
            each = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
            return [_single(frame, now_ms, *part) for part in each]
        case _:
            raise failure(answer, None)


def _single(frame: list[Any], now_ms: int, tag: str, what: Any, notice: str) -> list[Any]:
    match tag:
        case "RENEWED":
            return [tag, *frame, what, max(0, what - now_ms), notice]
        case "LOST":
            return [tag, *frame, what]
        case _:
            return [tag, *frame]


@of_known_form
def refusal_for_host(answer: Answer, token: str | None, host: str, team: str = "") -> LeaseError:
    """Return the error of a call that names a host, with that host and the nearest one."""
    match answer.raw:
        case ["REFUSED", _, _, _, _, "host_unknown", str(near)]:
            return HostUnknown.of(host, near, token=token)
        case ["REFUSED", _, _, _, _, "team_limit", str(limit)]:
            return refused("team_limit", limit, token, team or DEFAULT_TEAM)
        case _:
            return failure(answer, token)


@of_known_form
def failure(answer: Answer, token: str | None) -> LeaseError:
    """Return the error for a reply; a reply of no known form is a mismatch of versions."""
    match answer.raw:
        case ["REFUSED", now_ms, next_deadline_ms, _, _, str(code), str(what)]:
            error = refused(code, what, token)
            if isinstance(error, NoCapacity) and next_deadline_ms != "":
                error.retry_after_s = max(0.0, (int(next_deadline_ms) - now_ms) / 1000)
            return error
        case ["CONFLICT", *_]:
            return error_for("conflict", token=token)
        case ["LOST", _, _, _, _, str(code)]:
            return error_for(code, token=token)
        case ["UNKNOWN", *_]:
            return error_for("unknown_token", token=token)
        case other:
            return error_for("protocol_mismatch", f"unknown answer {str(other)[:80]}", token=token)
