"""The pool's clock and ledger: what time does, who was promised what, what is left.

Numbers are MiB and the pool's milliseconds, but `raw_us`, the server's clock.
"""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from tests.model.entries import (
    BACK_AT_ONCE,
    CLEAN_MS,
    DAY_US,
    DONE_MS,
    FAILOVER_MS,
    LAST_BACK,
    LEAP_MS,
    LOOK_MS,
    MOST_LEAPS,
    REAP_DEVICES,
    TAKEN,
    WINDOW_MS,
    Entry,
    Host,
    Load,
    Reply,
)  # fmt: skip
from tests.model.parties import Parties

if TYPE_CHECKING:
    from tests.model.queue import Queue


class Use(NamedTuple):
    """Use of what has ended, of one agent of one team."""

    leases: int = 0
    held_ms: int = 0
    mb_ms: int = 0
    gpu_ms: float = 0.0


class Chooser(Protocol):
    """The decider of all that the protocol leaves open."""

    backlog: bool
    """Return whether scheduling may have stopped at its bound, so that another comes first."""

    again: bool
    """Return whether a request was told to come again after reaping."""

    pages: int
    """The polls of a head that may pass before it has looked at every device."""

    def grant(self, token: str, options: list[tuple[str, ...]]) -> tuple[str, ...] | None:
        """Return the devices that a request gets; None when there is nothing, or in a backlog."""

    def offer(self, model: Queue) -> tuple[str, tuple[str, ...]] | None:
        """Return the next token that is offered devices, and those; None when there is none."""

    def later(self, token: str) -> bool:
        """Return whether one that is told to wait is offered something by the same call."""

    def caps(self, token: str) -> bool:
        """Return whether a waiter that may be capped is."""

    def preempt(self, token: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Return which leases end for a waiter, and the devices that it gets; None: none."""

    def keep(self, token: str, options: list[tuple[str, ...]]) -> tuple[str, ...]:
        """Choose which of these are reserved for a waiter."""


@dataclass(slots=True)
class Ledger(Parties):
    """A pool's clock, its devices and its tokens.

    `exists` is False until a report makes it; `another`: the server is not that of the last look;
    `nameless`: it was stopped in good order, and no call has looked since; `last`: the time of the
    call before this one; `way`: the library that the verbs are called by, empty for scripts;
    `seen_ms`: library -> the time of the last call that it has seen; `evicted`: token of a lease
    that was preempted -> how often its job was.
    """

    exists: bool = False
    another: bool = False
    nameless: bool = False
    way: str = ""
    seen_ms: dict[str, int] = field(default_factory=dict)
    last: int = 0
    silence_ms: int = 0
    leaps: int = 1
    paused: bool = False
    epoch: int = 0
    fence: int = 0
    offset_ms: int = 0
    looked_ms: int = 0
    window_until_ms: int = 0
    leap_from_ms: int = 0
    closed_until_ms: int = 0
    lost_us: int = 0
    more: int = 0
    hosts: dict[str, int | None] = field(default_factory=dict)
    drained_hosts: set[str] = field(default_factory=set)
    reports: dict[str, Host] = field(default_factory=dict)
    drains: set[str] = field(default_factory=set)
    sweep_ms: int = 0
    forgotten_ms: int = 0
    usage: dict[tuple[str, str], Use] = field(default_factory=dict)
    done: dict[str, tuple[str, int]] = field(default_factory=dict)
    evicted: dict[str, int] = field(default_factory=dict)
    offers_made: int = 0
    capped_now: int = 0
    lending: bool = False
    held_back_once: set[str] = field(default_factory=set)
    capped_once: dict[str, set[str]] = field(default_factory=dict)

    def copy(self) -> Self:
        """The same pool, to go another way."""
        other = copy(self)
        other.policy, other.hosts = dict(self.policy), dict(self.hosts)
        other.devices = {uuid: copy(d) for uuid, d in self.devices.items()}  # lists are replaced
        other.entries = {name: copy(e) for name, e in self.entries.items()}
        other.drained_hosts, other.done = set(self.drained_hosts), dict(self.done)
        other.drains, other.evicted = set(self.drains), dict(self.evicted)
        other.teams, other.use, other.usage = dict(self.teams), dict(self.use), dict(self.usage)
        other.reports = {name: copy(host) for name, host in self.reports.items()}
        return other

    # The clock.

    def open(self) -> Reply | None:
        """Read the clock. The refusal when there is no pool."""
        self.more = self.offers_made = self.capped_now = 0
        self.lending = False
        self.held_back_once, self.capped_once, self.paused = set(), {}, False
        if not self.exists:
            return ["REFUSED", "not_ready", ""]
        last, now = self.now, self.raw_us // 1000 + self.offset_ms
        if now < last:
            self.offset_ms, now, self.looked_ms = self.offset_ms + last - now, last, 0
        self.last, self.now = last, now
        if now - last > LEAP_MS:
            self.pause(WINDOW_MS)
            if self.silence_ms and now - last > self.silence_ms:
                self.lost()
        if last < self.seen_ms.get(self.way, 0):
            self.lost()
        if self.way:
            self.seen_ms[self.way] = now
        if now - self.looked_ms > LOOK_MS:
            self.look()
        return None

    def look(self) -> None:
        """Ask which server this is; a clean stop is believed for some seconds."""
        self.looked_ms = self.now
        if self.another or (self.nameless and self.now - self.last > CLEAN_MS):
            self.lost()
        self.another = self.nameless = False

    def lost(self) -> None:
        """Data went back: what was granted up to now may have been forgotten."""
        self.close(self.now + FAILOVER_MS, max(self.raw_us, self.fence))
        self.pause(FAILOVER_MS)

    def pause(self, for_ms: int) -> None:
        """Reap only what was due before the call before; S7: one that follows cuts none short."""
        if self.paused:
            return
        self.paused = True
        follows = self.last < self.window_until_ms and self.leaps < MOST_LEAPS
        self.leaps = self.leaps + 1 if follows else 1
        self.leap_from_ms = min(self.leap_from_ms, self.last) if follows else self.last
        self.window_until_ms = max(self.window_until_ms, self.now + for_ms)

    def witness(self, token: str, fence: int, owner: str) -> None:
        """A fence that the pool cannot know proves a loss, but for one said over HTTP."""
        e = self.entries.get(token)
        known = (not e and self.ended(token)) or (e and e.state in {"active", "cooling"})
        later = max(self.fence + 1, self.epoch) <= fence <= self.raw_us + DAY_US
        if later and not owner and not known:
            self.lost()
            self.fence = fence  # S3: they go on from there

    def recalls(self, seen_ms: int) -> None:
        """The caller had a reply of that time, which the pool may have forgotten."""
        if seen_ms > self.last:
            self.lost()

    def close(self, until_ms: int, lost_us: int) -> None:
        """Memory was lost: grant nothing until then, and let holders bring back what they have."""
        self.lost_us = max(self.lost_us, lost_us)
        self.closed_until_ms = max(self.closed_until_ms, until_ms)

    def over(self, at_ms: int) -> bool:
        """Is what ends then over, and may be taken back? In a window what was due before it."""
        late = self.now > at_ms
        return late and (self.now >= self.window_until_ms or at_ms <= self.leap_from_ms)

    @property
    def safe(self) -> bool:
        return self.policy["safe_mode"] == 1

    @property
    def shut(self) -> bool:
        return self.safe or self.now < self.closed_until_ms

    # The ledger.

    def loads(self) -> dict[str, Load]:
        """Return the rest of each device: total - system - leased - withheld - unleased."""
        reserved, leases = dict.fromkeys(self.devices, 0), dict.fromkeys(self.devices, 0)
        exclusive, reserved_for = dict.fromkeys(self.devices, ""), dict.fromkeys(self.devices, "")
        for e in self.entries.values():
            if e.state in TAKEN:
                for uuid, mb in e.held:
                    reserved[uuid], leases[uuid] = reserved[uuid] + mb, leases[uuid] + 1
                    if e.whole:
                        exclusive[uuid] = e.token
            for uuid in e.reserved:
                reserved_for[uuid] = e.token
        found = {}
        for uuid, d in self.devices.items():
            used = reserved[uuid] + d.withheld_mb + d.unleased_mb
            free = d.total_mb - d.system_mb - used
            up = free > 0 and d.state == "ok" and not d.drained
            unheld = leases[uuid] == 0 == d.withheld_mb
            unused = unheld and d.unleased_mb <= d.idle_unleased_mb
            found[uuid] = Load(
                free,
                reserved[uuid],
                leases[uuid],
                exclusive[uuid],
                reserved_for[uuid],
                up,
                up and unused,
                up and not exclusive[uuid] and (unheld or not d.one_lease),
            )
        return found

    def count(self, e: Entry, ended_ms: int) -> None:
        """Count the use of a lease whose right ended then."""
        held_ms = max(0, min(ended_ms, self.now) - e.granted_ms)
        who = e.ask.team, e.ask.agent
        was = self.usage.get(who, Use())
        mb_ms = sum(mb for _, mb in e.held) * held_ms
        gpu_ms = sum(self.part(e, uuid, mb) for uuid, mb in e.held) * held_ms
        self.usage[who] = Use(
            was.leases + 1, was.held_ms + held_ms, was.mb_ms + mb_ms, was.gpu_ms + gpu_ms
        )

    def part(self, e: Entry, uuid: str, mb: int) -> float:
        """Return the part of a device that a lease has."""
        d = self.devices[uuid]
        most_mb = d.total_mb - d.system_mb
        return 1.0 if e.whole or mb >= most_mb else mb / most_mb

    def end(self, e: Entry, outcome: str, ended_ms: int | None = None) -> None:
        """End a lease without its holder's word: on real devices its memory is withheld.

        `ended_ms`: when its right ended; None: now.
        """
        self.count(e, self.now if ended_ms is None else ended_ms)
        self.progress(e)
        if outcome == "preempted":
            self.evicted[e.token] = e.evictions + 1
        self.accrue(e.ask.team)
        real = any(not self.devices[uuid].simulated for uuid, _ in e.held)
        grace_ms = self.policy["expiry_grace_s"] * 1000 if real else 0
        if not grace_ms:
            return self.bury(e, outcome)
        for uuid, mb in e.held:
            d = self.devices[uuid]
            d.withheld_mb, d.withheld_at_ms = d.withheld_mb + mb, self.now
        e.state, e.outcome = "cooling", outcome
        e.expires_at_ms, e.due_ms = self.now, self.now + grace_ms
        return self.recheck_capped(e)

    def bury(self, e: Entry, outcome: str) -> None:
        """It is over: its token is refused from now on; an empty outcome leaves no trace."""
        if e.state == "active":
            self.progress(e)
        if e.state in TAKEN:
            self.accrue(e.ask.team)
        self.withdraw(e)
        del self.entries[e.token]
        if outcome:
            self.leave(e.token, outcome)
        if e.state in TAKEN or e.reservation_mb:
            self.recheck_capped(e)

    def leave(self, token: str, outcome: str) -> None:
        """Remember how it ended."""
        self.done[token] = outcome, self.now

    def ended(self, token: str) -> str:
        """Give how it ended, as long as that is remembered."""
        outcome, at_ms = self.done.get(token, ("", 0))
        return outcome if self.now < at_ms + DONE_MS else ""

    def recheck_capped(self, gone: Entry) -> None:
        """Sums of its parties fell: who fits under their caps again stands where it stood."""
        for party in self.cap_names(gone):
            mine = [e for e in self.entries.values() if e.capped == party]
            room_mb = self.left(party) if mine else 0
            most = BACK_AT_ONCE if self.party(party.partition("#")[0]).leases else LAST_BACK
            for e in sorted(mine, key=lambda e: (e.rank, e.token))[:most]:
                room_mb -= e.memory_mb * e.ask.devices
                if room_mb < 0:
                    break
                e.capped = ""

    def cool(self, e: Entry) -> None:
        """The grace is over: what is still used by what was its processes is a stranger's now."""
        for uuid, mb in e.held:
            d = self.devices[uuid]
            if e.expires_at_ms > d.cooled_at_ms:
                stays = min(mb, d.cooling_used.get(e.token, d.unlisted_mb))
                if e.token not in d.cooling_used:
                    d.unlisted_mb -= stays
                known = min(stays, d.raised_mb)
                d.raised_mb -= known
                d.withheld_mb, d.unleased_mb = d.withheld_mb - mb, d.unleased_mb + stays - known
        self.bury(e, e.outcome)

    def unkeep(self, uuid: str) -> None:
        """End the reservation of a device; its keeper keeps none of the others either."""
        for e in self.entries.values():
            if uuid in e.reserved:
                self.cancel(e)

    def cancel(self, e: Entry) -> None:
        """End the reservation of e; its parties' sums fall."""
        self.withdraw(e)
        fell, e.reserved, e.reservation_mb, e.known_end_ms = e.reservation_mb > 0, (), 0, 0
        if fell:
            self.recheck_capped(e)

    def withdraw_all(self) -> None:
        """Withdraw the notices of all waiters: the rules are others now."""
        for e in self.entries.values():
            if e.preempts:
                self.cancel(e)

    def withdraw(self, e: Entry) -> None:
        """Withdraw the notices that are still open for e."""
        for token in e.preempts:
            lease = self.entries.get(token)
            if lease and lease.preempt_for == e.token and lease.state == "active":
                lease.preempt_at_ms, lease.preempt_for = 0, ""
                ended_ms = (
                    0
                    if lease.revoked
                    else min(lease.ended_ms, lease.hold_until_ms or lease.ended_ms)
                )
                lease.expires_at_ms = lease.due_ms = max(lease.expires_at_ms, ended_ms)
        e.preempts = ()

    def progress(self, lease: Entry) -> None:
        """L3: the end of a lease that is older than a reservation lets that go on."""
        for e in self.entries.values():
            if set(e.reserved) & {uuid for uuid, _ in lease.held} and lease.fence <= e.at_fence:
                longer_ms = self.now + self.policy["reservation_idle_s"] * 1000
                e.until_ms = max(longer_ms, e.until_ms if e.preempts else 0)

    # Time.

    def deadlines(self) -> list[tuple[int, str]]:
        """Everything's next end, the first first."""
        ends = [(e.due_ms, e.token) for e in self.entries.values()]
        return sorted(ends + [(at, f"host:{h}") for h, at in self.hosts.items() if at is not None])

    def ends_as(self, e: Entry) -> str:
        """Give how its next renewal ends it; '' when it goes on."""
        over = 0 < e.preempt_at_ms <= self.now
        return "revoked" if e.revoked else "preempted" if over else ""

    def settle(self, member: str) -> int:
        """End the present state of one; how many devices that touched, at least 1."""
        if member.startswith("host:"):
            host = member[5:]
            self.hosts[host] = None
            mine = [uuid for uuid, d in self.devices.items() if d.host == host]
            for uuid in mine:
                self.unkeep(uuid)
                self.devices[uuid].state = "away"
            return max(1, len(mine))
        e = self.entries[member]
        if e.state == "active":
            self.end(e, self.ends_as(e) or "expired", e.expires_at_ms)
        elif e.state == "cooling":
            self.cool(e)
        else:
            self.bury(e, "timed_out")
        return max(1, len(e.held))

    def catch_up(self, named: str = "") -> None:
        """Take back what is over, first what the call names, and hand it on."""
        left = REAP_DEVICES
        if named in self.entries and self.over(self.entries[named].due_ms):
            left -= self.settle(named)
        for at_ms, member in self.deadlines():
            if not self.over(at_ms):
                break
            if left <= 0:
                self.more = 1
                break
            left -= self.settle(member)
        self.schedule()

    @abstractmethod
    def schedule(self) -> None:
        """Hand on what is free; see queue.py."""
