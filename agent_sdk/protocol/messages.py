"""Messages of the protocol: calls, answers, and the facts that they carry.

What is made on the path of every lease is a NamedTuple: it takes a third of the time of a frozen
dataclass.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

PROTOCOL: Final = 1
"""Sent with every call; the script's must be the same."""

SCHEMA: Final = 2
"""The layout of a pool's keys that this version works on, as in lua/lib/clock.lua."""

LONGEST_TTL_MS: Final = 7 * 24 * 3600 * 1000

ANY: Final = "*"
"""On the wire: any host, any model."""


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
        epoch: names the pool's data: another epoch means that they were lost.
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
        """Return the call that asks for it, and asks again."""
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
    """Return a token nobody had before: 128 random bits."""
    return os.urandom(16).hex()
