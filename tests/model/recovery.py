"""A lease that the pool has forgotten, and its holder has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tests.model.devices import Devices
from tests.model.entries import FAILOVER_MS, POLL_MS, Ask, Entry, Held, Reply


class Claim(NamedTuple):
    """A holder's knowledge of a lease that its pool has forgotten."""

    epoch: int
    ask: Ask
    held: Held


@dataclass(slots=True)
class Recovery(Devices):
    """A pool that takes up what it has forgotten."""

    def recover(self, token: str, fence: int, claim: Claim, owner: str) -> Reply | None:
        """Take up a forgotten lease, if there is room by capacity alone. Why not, or None."""
        ask, held = claim.ask, claim.held
        if fence > self.lost_us + FAILOVER_MS * 1000:
            return ["UNKNOWN"]
        granted_ms = min(self.now, fence // 1000 + self.now - self.raw_us // 1000)
        hold_until_ms = self.held_until(ask, granted_ms)
        waits = self.entries.get(token)
        if waits and not waits.preempts:
            self.bury(waits, "")
        if hold_until_ms and hold_until_ms < self.now:
            return self.gone(token, "expired")
        alone = ask.exclusive == 1 or ask.devices != 1
        for uuid, mb in held:
            if refusal := self.blocked(token, fence, uuid, mb, alone=alone):
                return refusal
        if token in self.entries:
            self.bury(self.entries[token], "")
        for uuid, mb in held:
            self.unkeep(uuid)
            if fence < self.epoch:
                self.devices[uuid].unleased_mb = max(0, self.devices[uuid].unleased_mb - mb)
        self.fence = max(self.fence, fence)
        self.accrue(ask.team)
        self.entries[token] = Entry(
            token, ask, owner, ask.memory_mb, "active", self.now, held, fence, self.now,
            hold_until_ms, whole=alone and bool(held), granted_ms=granted_ms,
        )  # fmt: skip
        return None

    def held_until(self, ask: Ask, granted_ms: int) -> int:
        """Return when it ends at the latest: as it asked, or by default of its team; 0: never."""
        if ask.max_hold_ms or not (default_ms := self.hold_ms(ask)):
            return granted_ms + ask.max_hold_ms if ask.max_hold_ms else 0
        until_ms = granted_ms + default_ms
        return until_ms if until_ms >= self.now else self.now + default_ms  # it was extended

    def blocked(self, token: str, fence: int, uuid: str, mb: int, *, alone: bool) -> Reply | None:
        """Answer a recovery for which a device has no room; None: it has."""
        waits, pending = self.entries.get(token), False
        if waits and self.lacks(uuid, mb, alone=alone):
            pending = self.give_way(waits, uuid, fence)
        if not self.lacks(uuid, mb, alone=alone):
            return None
        x = self.loads().get(uuid)
        younger = x and x.exclusive and self.entries[x.exclusive].fence > fence
        if not pending and (self.now >= self.closed_until_ms or younger):
            return self.gone(token, "superseded")
        if waits:
            waits.due_ms = self.now + POLL_MS
        return ["AGAIN"]

    def lacks(self, uuid: str, mb: int, *, alone: bool) -> bool:
        """Has a device no room for a forgotten lease?"""
        d, x = self.devices.get(uuid), self.loads().get(uuid)
        room_mb = d.total_mb - d.system_mb - x.leased_mb if d and x and not x.exclusive else 0
        return room_mb < mb or bool(alone and x and x.leases)

    def gone(self, token: str, outcome: str) -> Reply:
        """Refuse a recovery: the lease is over, also for its late calls."""
        if token in self.entries:
            self.bury(self.entries[token], "")
        self.leave(token, outcome)
        return ["LOST", outcome]
