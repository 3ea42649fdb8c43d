"""L3 from outside: how long what is reserved for one head is kept from another that it suits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.model.entries import POLL_MS, demand

if TYPE_CHECKING:
    from tests.model.queue import Queue

SILENT_MS = POLL_MS + 1000
"""Time that a reservation may outlive its horizon: until its waiter polls, or has timed out."""


def kept_from_others(model: Queue) -> dict[str, str]:
    """Devices that a head could have, were they not reserved for one before it: for which one."""
    found, heads = dict[str, str](), [e for e in model.heads() if not e.blind]
    for owner in [e for e in model.entries.values() if e.reserved]:
        held, owner.reserved = owner.reserved, ()
        for e in heads:
            if e is not owner and not model.comes_first(e, owner):
                could = {uuid for some in model.fitting(e, model.room_of(e)) for uuid in some}
                found |= dict.fromkeys(could & set(held), owner.token)
        owner.reserved = held
    return found


@dataclass(slots=True)
class Watch:
    """One pool, watched after each of its calls.

    `waited`: device -> the waiter it is reserved for, and how long others that it suits waited;
    `horizons`: waiter -> until when its reservation lasts, and the policy when that was said.
    """

    waited: dict[str, tuple[str, int]] = field(default_factory=dict)
    horizons: dict[str, tuple[int, int]] = field(default_factory=dict)
    last_ms: int = 0
    idle_ms: int = 0

    def look(self, model: Queue) -> None:
        """Raise Broken if a device idles for longer than the horizon beside one that it suits."""
        old, self.horizons = self.horizons, {}
        for e in model.entries.values():
            until_ms, idle_ms = old.get(e.token, (0, 0))
            if e.reserved and until_ms != e.until_ms:
                idle_ms = max(model.idle_ms, self.idle_ms)  # a policy may just have changed
                if e.preempts:
                    idle_ms = max(idle_ms, e.until_ms - model.now)
            if e.reserved:
                self.horizons[e.token] = e.until_ms, idle_ms
        passed_ms = min(max(0, model.now - self.last_ms), POLL_MS)
        if model.shut or model.now < model.window_until_ms:
            passed_ms = 0  # nothing is granted, or silent waiters do not time out
        before, self.waited = self.waited, {}
        for uuid, token in kept_from_others(model).items():
            owner, waited_ms = before.get(uuid, (token, 0))
            until_ms, idle_ms = self.horizons[token]
            progress = owner == token and token in old and old[token][0] != until_ms
            waited_ms = 0 if progress else waited_ms + passed_ms
            self.waited[uuid] = token, waited_ms
            demand(waited_ms <= idle_ms + SILENT_MS, f"L3: {uuid} idles for {token}: {waited_ms}")
        self.last_ms, self.idle_ms = model.now, model.idle_ms
