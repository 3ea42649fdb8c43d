"""Messages of the protocol: calls, answers, and the facts that they carry.

Objects on the path of every lease are NamedTuples: one takes a third of the time of a frozen
dataclass.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOL: Final = 1
"""Version that is sent with every call; the script's must be the same."""

SCHEMA: Final = 4
"""Layout of a pool's keys that this version works on, as in lua/lib/clock.lua."""

SCHEMA_WITH_MODELS: Final = "4+models"
"""The same while a team has quotas by model, which older versions would not keep."""

LONGEST_TTL_MS: Final = 7 * 24 * 3600 * 1000

ENDLESS_MS: Final = 5 * 365 * 24 * 3600 * 1000
"""Milliseconds that mark a lease as endless.

A lease without expiry ends ten years after its grant or its last renewal, unless it may be held for
less; none with a ttl lasts half of that.
"""

SAID: Final = 16
"""Arguments of acquire, after the protocol, that each call has."""

NOTHING_MORE: Final = ("",) * 6
"""The rest of them, where a call has none."""

ANY: Final = "*"
"""Word on the wire for any host, any model."""


@final
class Call(NamedTuple):
    """Run of a verb's script."""

    verb: str
    args: tuple[str | int, ...]
    token: str | None = None


def ended(reply: object) -> bool:
    """Tell whether a release's reply says that nothing is left of the lease."""
    return isinstance(reply, list) and reply[0] in {"RELEASED", "ALREADY", "UNKNOWN"}


@dataclass(slots=True)
class Giving:
    """Release that is sent together with the next acquire.

    Attributes:
        call: the release.
        done: its answer came: the lease has ended.
    """

    call: Call
    done: bool = False

    def take(self, reply: object) -> None:
        """Take note of the reply."""
        self.done = self.done or ended(reply)


class Exchange(NamedTuple):
    """Release of one lease and acquire of the next, sent in this order in one write.

    Its answer is that of the acquire.
    """

    giving: Giving
    call: Call

    @property
    def calls(self) -> tuple[Call, Call]:
        """Both calls, in their order."""
        return self.giving.call, self.call

    @property
    def token(self) -> str | None:
        """Token of the lease that is asked for."""
        return self.call.token


@dataclass(frozen=True, slots=True)
class Read:
    """Plain commands, sent in one pipeline; reading is never a verb."""

    commands: tuple[tuple[str | int, ...], ...]


class Pause(NamedTuple):
    """Wait for a hint for the token, at most so many seconds.

    Attributes:
        left_s: the rest of the whole wait.
    """

    token: str
    seconds: float
    left_s: float


class Answer(NamedTuple):
    """Answer to a call or a read, with the time of sending on `local_now`'s clock."""

    raw: list[Any]
    sent_at: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Frame of every reply: the pool's time and its next deadline.

    Attributes:
        now_ms: the pool's clock.
        next_deadline_ms: no lease ends before; None: none will. `reap` computes it.
        epoch: names the pool's data: another epoch means that they were lost.
        more: this call left something ended for the next `reap`.
    """

    now_ms: int
    next_deadline_ms: int | None
    epoch: str
    more: bool


@dataclass(frozen=True, slots=True)
class Device:
    """GPU, or a share of one, as it was at the grant.

    Attributes:
        uuid: NVML's UUID, its identity.
        index: its index on its host at the grant; it may change at a reboot.
        host: the machine that has it.
        name: its name by the driver.
        memory_mb: MiB of it that the lease holds.
        total_mb: MiB of the whole device; 0 = unknown.
        used_mb: MiB that were in use when its host last said so; None: unknown.
        runtime_id: its name for the runtime beside the UUID: CUDA's number in PCI order; empty:
            not certain.
    """

    uuid: str
    index: int
    host: str
    name: str
    memory_mb: int
    total_mb: int = 0
    used_mb: int | None = None
    runtime_id: str = ""


class Request(NamedTuple):
    """Arguments of an acquire, in their order in `lua/acquire.lua`."""

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
    note: str = ""
    uses: str = ""
    team: str = ""
    preemptible: int | str = ""
    yields: int | str = ""
    after: str = ""

    def call(self) -> Call:
        """Return the call that asks for the lease, and asks again; what is rare comes last."""
        said = self[:SAID] if self[SAID:] == NOTHING_MORE else self
        return Call("acquire", (PROTOCOL, *said), self.token)

    @property
    def asked(self) -> str:
        """Fields that make two requests the same, in the ledger's form."""
        return "|".join(map(str, self[2:12]))


class RecoveryClaim(NamedTuple):
    """Facts about a lease that a renewal presents to a pool that forgot it; see `lua/renew.lua`.

    Attributes:
        epoch: the epoch of the pool that granted it.
        devices: `uuid=mb,...`, as the ledger writes them.
        request: arguments 4 to 13 of its acquire, joined by `|`.
        team: its team; empty = the default one.
    """

    epoch: str
    agent: str
    devices: str
    request: str
    client: str
    pid: str
    team: str = ""


class Grant:
    """Lease as the pool granted it.

    `devices` and `claim` may be given as functions, which make them when they are first looked at:
    most leases end before.

    Attributes:
        fence: grows with every grant of the pool: the newer holder has the larger.
        expires_at_ms: on Redis's clock; for showing, never for comparing with a local clock.
        ttl_ms: as asked; 0 = no expiry.
        reason: the reason for a CPU lease, or None.
        trusted_until: the end of trust on `clock.local_now`'s clock.
    """

    __slots__ = (
        "_claim", "_devices", "agent", "expires_at_ms", "fence", "reason", "remaining_ms", "token",
        "trusted_until", "ttl_ms",
    )  # fmt: skip

    def __init__(
        self,
        token: str,
        agent: str,
        fence: int,
        expires_at_ms: int,
        remaining_ms: int,
        ttl_ms: int,
        reason: str | None,
        devices: tuple[Device, ...] | Callable[[], tuple[Device, ...]],
        trusted_until: float,
        claim: RecoveryClaim | Callable[[], RecoveryClaim] | None = None,
    ) -> None:
        self.token = token
        self.agent = agent
        self.fence = fence
        self.expires_at_ms = expires_at_ms
        self.remaining_ms = remaining_ms
        self.ttl_ms = ttl_ms
        self.reason = reason
        self._devices = devices
        self.trusted_until = trusted_until
        self._claim = claim

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices of the lease; empty for a CPU lease."""
        if not isinstance(self._devices, tuple):
            self._devices = self._devices()
        return self._devices

    @property
    def claim(self) -> RecoveryClaim | None:
        """Claim on a pool that forgets it; None: there is none, as through HTTP."""
        if callable(self._claim):
            self._claim = self._claim()
        return self._claim

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the form that travels: with its devices and its claim."""
        return Grant, (
            self.token, self.agent, self.fence, self.expires_at_ms, self.remaining_ms, self.ttl_ms,
            self.reason, self.devices, self.trusted_until, self.claim,
        )  # fmt: skip


class Renewal(NamedTuple):
    """Result of a renewal: the new end, and the end of trust in it.

    Attributes:
        notices: the findings of the device's host about the lease, words of `finding_kinds.KINDS`.
        preempt_at: the time at which it is taken back, by `time.time()` of this machine; None: it
            is not to be.
        wanted: the agent that asks for it, and the MiB that this wants; None: no agent does.
    """

    expires_at_ms: int
    remaining_ms: int
    trusted_until: float
    notices: tuple[str, ...] = ()
    preempt_at: float | None = None
    wanted: tuple[str, int] | None = None

    @property
    def endless(self) -> bool:
        """True for a lease that ends neither by a ttl nor by how long it may be held."""
        return self.remaining_ms > ENDLESS_MS


class ReleaseResult(NamedTuple):
    """Result of a release.

    Attributes:
        by_this_call: True when this call ended the lease.
        outcome: a word of `errors.CODES`; `unknown_token`: the lease is unknown.
    """

    by_this_call: bool
    outcome: str


def new_token() -> str:
    """Return a new token: 128 random bits."""
    return os.urandom(16).hex()
