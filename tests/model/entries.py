"""Entries of a pool: devices, and tokens that wait, hold or cool; in MiB and milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEAP_MS, WINDOW_MS, LOOK_MS, FAILOVER_MS, FORGOT_MS = 10_000, 30_000, 100, 10_000, 60_000
CLEAN_MS, MOST_LEAPS, DAY_US = 5000, 4, 86_400_000_000
POLL_MS, CLAIM_MS, KEEP_AFTER_MS, REVOKED_MS = 10_000, 10_000, 30_000, 60_000
DOUBLINGS, HOLDERS_READ, DOUBLINGS_OF_RUNTIME, LATEST_MS = 4, 16, 6, 60_000
FOREVER_MS, PRIORITY_US = 315_360_000_000, 60_000_000
REAP_DEVICES, BACK_AT_ONCE, LAST_BACK = 16, 4, 64
SWEEP_MS, DONE_MS = 300_000, 900_000
POLICY = {
    "policy_version": 1, "safe_mode": 0, "max_memory_per_agent_mb": 1_048_576,
    "allow_fractional_shares": 1, "default_memory_mb": 2048, "expiry_grace_s": 5,
    "max_leases_per_agent": 256, "max_waiters_per_agent": 256,
    "reservation_idle_s": 60, "half_life_s": 604_800, "reclaim_after_s": 60, "min_runtime_s": 300,
    "preempt_grace_s": 60,
    "forget_devices_after_s": 3600, "forget_hosts_after_s": 86_400,
}  # fmt: skip

TAKEN = {"active", "offered"}
Held = tuple[tuple[str, int], ...]
Reply = list[Any]


class Broken(AssertionError):
    """An act of the scripts that is not allowed."""


def demand(holds: object, what: str) -> None:
    """Raise what is broken unless it holds."""
    if not holds:
        raise Broken(what)


class Ask(NamedTuple):
    """An acquire's request: all that a repeat must say again."""

    agent: str = "ann"
    memory_mb: int = 900
    devices: int = 1
    exclusive: int = 0
    ttl_ms: int = 30_000
    max_hold_ms: int = 0
    priority: int = 0
    host: str = "*"
    model: str = "*"
    placement: str = "spread"
    on_unavailable: str = "refuse"
    team: str = "default"

    @property
    def request(self) -> tuple[Any, ...]:
        """The part that the pool keeps as one text: all but the parties."""
        return self[1:-1]


@dataclass(slots=True)
class Device:
    """A GPU; what is promised on it is the entries' to say.

    Of the leases that cool the newest sample has `cooling_used` MiB for each and `unlisted_mb` that
    it gives to none of them; `raised_mb` of what is unleased is an older sample's word. With
    `one_lease` it takes one lease at a time; with at most `idle_unleased_mb` it counts as unused.
    """

    host: str
    model: str
    total_mb: int = 0
    system_mb: int = 0
    state: str = "unknown"
    parent: str = ""
    simulated: bool = True
    drained: bool = False
    unleased_mb: int = 0
    withheld_mb: int = 0
    raised_mb: int = 0
    unlisted_mb: int = 0
    cooling_used: dict[str, int] = field(default_factory=dict)
    sampled_ms: int = 0
    withheld_at_ms: int = 0
    cooled_at_ms: int = 0
    reservable_ms: int = 0
    listed_ms: int = 0
    one_lease: str = ""
    idle_unleased_mb: int = 512


@dataclass(slots=True)
class Host:
    """Times at which a host came, reported, and listed devices, and its deadline."""

    deadline_ms: int = 0
    up_ms: int = 0
    reported_ms: int = 0
    listed_ms: int = 0


@dataclass(slots=True)
class Entry:
    """A token that waits, was offered something, holds it, or cools.

    `memory_mb` is with the policy's default, `whole`: it was given all of its devices, `blind`: the
    policy changed, and no call has looked at it since; `capped`: the party whose cap alone holds
    it back. `reserved`: devices for it, with what counts against its caps, until when that lasts,
    the newest lease before it, by when what it waits for has surely ended; then how often it was in
    vain, and when it may be tried again. `preempts`: leases that are to end for it; of such a lease
    `preempt_at_ms`, `preempt_for`, and when it would have ended. `wanted`: what was last asked of a
    lease that `yields`.
    """

    token: str
    ask: Ask
    owner: str
    memory_mb: int
    state: str = "waiting"
    due_ms: int = 0
    held: Held = ()
    fence: int = 0
    expires_at_ms: int = 0
    hold_until_ms: int = 0
    revoked: bool = False
    outcome: str = ""
    reason: str = ""
    rank: int = 0
    enqueued_ms: int = 0
    capped: str = ""
    reserved: tuple[str, ...] = ()
    reservation_mb: int = 0
    until_ms: int = 0
    at_fence: int = 0
    known_end_ms: int = 0
    reservations: int = 0
    reserves_ms: int = 0
    misses: int = 0
    version: int = 0
    whole: bool = False
    blind: bool = False
    granted_ms: int = 0
    preemptible: bool = False
    yields: bool = False
    wanted: str = ""
    evictions: int = 0
    preempts: tuple[str, ...] = ()
    preempt_at_ms: int = 0
    preempt_for: str = ""
    ended_ms: int = 0
    unnoticed: int = 0

    @property
    def parties(self) -> tuple[str, ...]:
        """Parties that it counts against: its agent, its API key, its team."""
        key = (f"key {self.owner}",) if self.owner else ()
        return (self.ask.agent, *key, f"team {self.ask.team}")

    @property
    def queue_id(self) -> str:
        """With whom it waits: host, model, size class, and a team other than the default one."""
        ask = self.ask
        size = (self.memory_mb - 1).bit_length()
        whole = ask.exclusive or ask.devices > 1
        size_class = f"x{100 * (ask.devices - 1).bit_length() + size}" if whole else f"m{size}"
        team = "" if ask.team == "default" else f"/{ask.team}"
        return f"{ask.host}/{ask.model}/{size_class}{team}"


class Load(NamedTuple):
    """Promises on a device, and the memory that is left of it."""

    free_mb: int
    leased_mb: int
    leases: int
    exclusive: str
    reserved_for: str
    up: bool
    empty: bool
    sharable: bool
