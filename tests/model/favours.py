"""Favours that are asked of a lease: to be given up, to last longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.model.recovery import Recovery

if TYPE_CHECKING:
    from tests.model.entries import Reply


@dataclass(slots=True)
class Favours(Recovery):
    """A pool whose leases may be asked for, and moved."""

    def ask(self, token: str, by: str, owner: str = "") -> Reply:
        """Let a waiter ask the holder of a lease for it."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        w, e = self.entries.get(by), self.entries.get(token)
        if not w or w.state != "waiting" or owner not in {"", w.owner}:
            return ["UNKNOWN"]
        if not e or e.state != "active":
            return ["UNKNOWN"]
        if not e.yields:
            return ["DECLINED"]
        e.wanted = f"{w.memory_mb * w.ask.devices}:{w.ask.agent}"
        return ["ASKED"]

    def extend(  # noqa: PLR0911 - its answers, in their order
        self, token: str, hold_ms: int, by: str = "", owner: str = ""
    ) -> Reply:
        """Move the time by which a lease ends; its holder only within its team's."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        over = self.ended(token) if not e else e.outcome if e.state == "cooling" else ""
        if e and owner not in {"", e.owner}:
            return ["UNKNOWN"]
        if over:
            return ["ALREADY", over]
        if not e or e.state != "active":
            return ["UNKNOWN"]
        most_s, until_ms = self.team(e.ask.team).max_hold_s, self.now + hold_ms if hold_ms else 0
        if most_s and not by and not 0 < until_ms <= e.granted_ms + most_s * 1000:
            return ["REFUSED", "team_limit", f"max_hold_s={most_s}"]
        lent_ms = 0 if by else self.lent_until(e)
        if lent_ms and not 0 < until_ms <= lent_ms:
            return ["REFUSED", "no_capacity", str(lent_ms)]
        e.hold_until_ms = max(until_ms, e.expires_at_ms) if until_ms else 0
        self.end_moved(e)
        return ["EXTENDED", e.hold_until_ms]
