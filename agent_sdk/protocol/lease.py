"""The protocol without the waiting: what to send, and what the answer means.

Each verb is a generator that yields what to do (`Call`: run a verb's script; `Read`: commands in
one pipeline; `Pause`: wait for a hint, or a while), is sent the answer, and returns a result or
raises a `LeaseError`. `client` and `aio` drive the same generators and differ in how they wait.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from agent_sdk.clock import local_now, trusted_until
from agent_sdk.errors import HostUnknown, LeaseError, NoCapacity, StillWaiting, error_for

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

P = ParamSpec("P")
T = TypeVar("T")

PROTOCOL: Final = 1
"""Sent with every call; the script's must be the same."""

SCHEMA: Final = 2
"""The layout of a pool's keys that this version works on, as in lua/lib/clock.lua."""

DEVICE_WORDS: Final = 5
"""Words that a grant says of each device: id, MiB, index, host, name."""

LONGEST_TTL_MS: Final = 7 * 24 * 3600 * 1000

HEARTBEAT_MS: Final = 10_000
"""A waiter that does not ask for so long loses its place."""

FIRST_POLL_S: Final = 3.0
"""Between two polls of a waiter that is next, at most: its poll finds what no script has freed."""

OTHERS_POLL_S: Final = (6.5, 8.5)
"""Between two polls of one behind others: only a heartbeat; apart, not all at once."""

OVERDUE_POLL_S: Final = 0.25
"""While something is over that may not be taken back yet."""

ANY: Final = "*"
"""On the wire: any host, any model."""


# On the path of every lease a NamedTuple is made three times as fast as a frozen dataclass.


class Call(NamedTuple):
    """One run of a verb's script."""

    verb: str
    args: tuple[str | int, ...]
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Plain commands, sent in one pipeline; reading is never a verb."""

    commands: tuple[tuple[str | int, ...], ...]


class Pause(NamedTuple):
    """Nothing to send: wait for a hint for the token, at most so many seconds.

    Attributes:
        left_s: what is left of the whole wait.
    """

    token: str
    seconds: float
    left_s: float


class Answer(NamedTuple):
    """What came back, and when the request left on `local_now`'s clock."""

    raw: list[Any]
    sent_at: float


@dataclass(frozen=True, slots=True)
class Moment:
    """The frame of every reply: the pool's time and what time will do next.

    Attributes:
        now_ms: the pool's clock.
        next_deadline_ms: nothing ends before; None: nothing will. `reap` looks when the next does.
        epoch: names the pool's memory: another epoch means that it was lost.
        more: something is over that this call left for the next `reap`.
    """

    now_ms: int
    next_deadline_ms: int | None
    epoch: str
    more: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a share of one, as it was when the lease was granted.

    Attributes:
        uuid: NVML's UUID, its identity.
        index: its index on its host at the grant; it may change at a reboot.
        host: the machine that has it.
        name: what the driver calls it.
        memory_mb: MiB of it that the lease holds.
    """

    uuid: str
    index: int
    host: str
    name: str
    memory_mb: int


class Request(NamedTuple):
    """Everything an acquire asks for, in the order of its arguments in `lua/acquire.lua`."""

    token: str
    agent: str
    memory_mb: int
    devices: int
    exclusive: int
    ttl_ms: int
    max_hold_ms: int
    priority: int
    host: str
    model: str
    placement: str
    on_unavailable: str
    client: str
    pid: str
    owner: str
    wait_ms: int = 0

    def call(self) -> Call:
        """The call that asks for it, and asks again."""
        return Call("acquire", (PROTOCOL, *self), self.token)

    @property
    def asked(self) -> str:
        """What makes two requests the same, as the ledger has it."""
        return "|".join(map(str, self[2:12]))


class RecoveryClaim(NamedTuple):
    """What a renewal presents of a lease that the pool has forgotten; see `lua/renew.lua`.

    Attributes:
        epoch: of the pool that granted it.
        devices: `uuid=mb,...`, as the ledger writes them.
        request: arguments 4 to 13 of its acquire, joined by `|`.
    """

    epoch: str
    agent: str
    devices: str
    request: str
    client: str
    pid: str


class Grant(NamedTuple):
    """A lease as the broker gave it.

    Attributes:
        fence: grows with every grant of the pool: the newer holder has the larger.
        expires_at_ms: on Redis's clock; for showing, never for comparing with a local clock.
        ttl_ms: as asked; 0 = no expiry.
        reason: why it is a CPU lease, or None.
        devices: empty for a CPU lease.
        trusted_until: on `clocks.local_now`'s clock.
        claim: for a pool that forgets it; None: it cannot be claimed, as through HTTP.
    """

    token: str
    agent: str
    fence: int
    expires_at_ms: int
    remaining_ms: int
    ttl_ms: int
    reason: str | None
    devices: tuple[Device, ...]
    trusted_until: float
    claim: RecoveryClaim | None = None


class Renewal(NamedTuple):
    """What a renewal gave: the new end, and until when to believe in it.

    Attributes:
        notices: what the device's host finds of the lease, words of `devices.FINDINGS`.
    """

    expires_at_ms: int
    remaining_ms: int
    trusted_until: float
    notices: tuple[str, ...] = ()

    @property
    def endless(self) -> bool:
        """A lease without expiry: no other has more left than the longest ttl."""
        return self.remaining_ms > LONGEST_TTL_MS


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """How a release went.

    Attributes:
        by_this_call: True when this call ended the lease.
        outcome: how it ended, a word of `errors.CODES`; `unknown_token`: nothing is known of it.
    """

    by_this_call: bool
    outcome: str


def new_token() -> str:
    """A token nobody had before: 128 random bits."""
    return os.urandom(16).hex()


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas between."""
    return tuple(filter(None, text.split(",")))


_NO_KNOWN_FORM: Final = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What reading comes to: of a wrong word, type or number, or of lists in lists without end."""


def of_known_form(read: Callable[P, T]) -> Callable[P, T]:
    """Make an answer of no known form what it is: two versions that do not match."""

    @wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except _NO_KNOWN_FORM as error:
            raise error_for("protocol_mismatch", f"unknown answer: {error}") from error

    return reading


@of_known_form
def moment(answer: Answer) -> Moment:
    """The frame of a reply."""
    _, now_ms, next_deadline_ms, epoch, more, *_ = answer.raw
    if not isinstance(now_ms, int):
        raise TypeError(f"no time: {now_ms!r}")
    return Moment(
        now_ms, None if next_deadline_ms == "" else int(next_deadline_ms), epoch, bool(more)
    )


def acquire(
    request: Request, until: float = 0.0, *, keep_place: bool = False
) -> Generator[Call | Pause, Answer, Grant]:
    """Ask for a lease, and wait for it in the line.

    Args:
        request: what is asked; its `wait_ms` is what is left of the wait.
        until: the end of the wait on `clocks.local_now`'s clock. The last call decides.
        keep_place: at the end decide nothing: stay in the line and raise StillWaiting.

    Raises:
        Refused, BrokerUnavailable: with the reason.
        LeaseLost: this token's lease is over already, or its place in the line is lost.
    """
    while True:
        answer = yield request.call()
        match answer.raw:
            case ["GRANTED", _, _, _, _, _, int(), int(), *_]:
                return _grant(request, answer)
            case ["AGAIN", *_] | ["WAITING", _, _, _, 1, _]:
                # More is over than one script takes back: what looks full may not be.
                yield from reap_all()
            case ["WAITING", _, _, _, _, int(place)]:
                left_s = max(0.0, until - local_now())
                if keep_place and left_s == 0.0:
                    raise StillWaiting("waiting", token=request.token, place=place)
                yield Pause(request.token, min(left_s, poll_s(moment(answer), place)), left_s)
            case _:
                raise refusal_for_host(answer, request.token, request.host)
        request = request._replace(wait_ms=left_ms(until, keep_place=keep_place))


def left_ms(until: float, *, keep_place: bool = False) -> int:
    """What is left of a wait; who keeps its place asks for as long as a place is kept."""
    left = max(0, math.ceil((until - local_now()) * 1000))
    return left + HEARTBEAT_MS if keep_place else left


@of_known_form
def poll_s(seen: Moment, place: int) -> float:
    """When a waiter asks again if no hint comes; `place`: how many of its want are ahead.

    The first sees to it that what is over comes back, where no broker does.
    """
    if place > 0:
        return random.uniform(*OTHERS_POLL_S)
    if seen.next_deadline_ms is None:
        return FIRST_POLL_S
    due_s = (seen.next_deadline_ms - seen.now_ms + 2) / 1000
    return min(FIRST_POLL_S, due_s if due_s > 0 else OVERDUE_POLL_S)


@of_known_form
def _grant(request: Request, answer: Answer) -> Grant:
    _, _, _, epoch, _, fence, expires_at_ms, remaining_ms, reason, *flat = answer.raw
    devices = [
        Device(uuid, int(index), host, name, int(mb))
        for uuid, mb, index, host, name in zip(*[iter(flat)] * DEVICE_WORDS, strict=True)
    ]
    return Grant(
        request.token,
        request.agent,
        int(fence),
        expires_at_ms,
        remaining_ms,
        request.ttl_ms,
        reason or None,
        tuple(devices),
        trusted_until(answer.sent_at, remaining_ms),
        RecoveryClaim(
            epoch,
            request.agent,
            ",".join([f"{device.uuid}={device.memory_mb}" for device in devices]),
            request.asked,
            request.client,
            request.pid,
        ),
    )


def renew_call(
    token: str,
    fence: int | None,
    ttl_ms: int | None,
    owner: str = "",
    claim: RecoveryClaim | None = None,
) -> Call:
    """The call that renews; the keeper sends many of them in one pipeline.

    claim: only after `unknown` was answered, and while the holder may believe in the lease.
    """
    fence_or_any, ttl_or_same = "" if fence is None else fence, "" if ttl_ms is None else ttl_ms
    more = _owned(owner) if claim is None else (owner, *claim)
    return Call("renew", (PROTOCOL, token, fence_or_any, ttl_or_same, *more), token)


def unknown(raw: object) -> bool:
    """Whether the answer to a renewal is that nothing is known of the lease."""
    return isinstance(raw, list) and raw[:1] == ["UNKNOWN"]


@of_known_form
def renewed(answer: Answer, token: str) -> Renewal:
    """What a renewal's answer means.

    Raises:
        LeaseLost: with the reason.
        UnknownToken: nothing is known of it.
        BrokerUnavailable: it cannot be told yet: the pool may have lost data and hears holders.
    """
    match answer.raw:
        case ["RENEWED", _, _, _, _, int(expires_at_ms), int(remaining_ms), str(notice)]:
            until = trusted_until(answer.sent_at, remaining_ms)
            return Renewal(expires_at_ms, remaining_ms, until, words(notice))
        case ["AGAIN", *_]:
            raise error_for("closed", token=token)
        case _:
            raise failure(answer, token)


def _owned(owner: str) -> tuple[str, ...]:
    """The argument by which a script compares the owner; none: it may be anybody's."""
    return (owner,) if owner else ()


def renew(
    token: str,
    fence: int | None,
    ttl_ms: int | None,
    owner: str = "",
    claim: RecoveryClaim | None = None,
) -> Generator[Call, Answer, Renewal]:
    """Renew one lease, with its claim should the pool have forgotten it; see `renewed`."""
    answer = yield renew_call(token, fence, ttl_ms, owner)
    if claim and unknown(answer.raw):
        answer = yield renew_call(token, fence, ttl_ms, owner, claim)
    return renewed(answer, token)


def release(
    token: str, *, plant: bool = True, owner: str = ""
) -> Generator[Call, Answer, ReleaseResult]:
    """Give a lease back. `plant`: an unknown token is refused from now on."""
    answer = yield Call("release", (PROTOCOL, token, int(plant), *_owned(owner)), token)
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
    """Take back what is over, as much of it as one script may.

    seen_ms: `now_ms` of the caller's last reply: a pool that has forgotten it says so to all.
    """
    answer = yield Call("reap", (PROTOCOL, seen_ms))
    match answer.raw:
        case ["REAPED", *_]:
            return moment(answer)
        case _:
            raise failure(answer, None)


def reap_all() -> Generator[Call, Answer, Moment]:
    """Take back everything that is over."""
    while (seen := (yield from reap())).more:
        pass
    return seen


def schema_mismatch(schema: str) -> str:
    """Say in a sentence what to do about a pool whose keys have another layout."""
    says = f"the pool has schema {schema[:20]}, and this version works on schema {SCHEMA}: "
    if schema in map(str, range(SCHEMA)):
        return f"{says}stop what uses the pool, delete its keys (gpu:{{POOL}}:*), then start anew"
    return f"{says}upgrade this version"


_SAYS_WHAT: Final[dict[str, Callable[[str], str]]] = {
    "bad_request": "the request is not well-formed: {} cannot be that".format,
    "protocol_mismatch": schema_mismatch,
    "in_use": "{} has a lease, or memory that is not free yet: revoke it, then forget again".format,
}
"""Refusals whose detail a caller needs."""


@of_known_form
def refusal_for_host(answer: Answer, token: str | None, host: str) -> LeaseError:
    """The error of a call that names a host: it says which, and which may have been meant."""
    match answer.raw:
        case ["REFUSED", _, _, _, _, "host_unknown", str(near)]:
            return HostUnknown.of(host, near, token=token)
        case _:
            return failure(answer, token)


@of_known_form
def failure(answer: Answer, token: str | None) -> LeaseError:
    """The error that a reply stands for; a reply of no known form is a mismatch of versions."""
    match answer.raw:
        case ["REFUSED", _, _, _, _, str(code), str(what)] if code in _SAYS_WHAT and what:
            return error_for(code, _SAYS_WHAT[code](what), token=token)
        case ["REFUSED", now_ms, next_deadline_ms, _, _, str(code), _]:
            error = error_for(code, token=token)
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
