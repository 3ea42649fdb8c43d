"""Tokens that are given back in the background, each until the store has answered for it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.clock import local_now

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

ABANDON_S: Final = 900.0
"""Seconds for which a token that may have been granted is tried to be given back."""

RETRY_S: Final = 0.25
"""Seconds between tries while the store does not answer; less for a shorter lease."""

BATCH: Final = 256
"""Leases that are given back, or renewed, at once."""


@dataclass(slots=True)
class _Token:
    until: float
    next_at: float


class Abandoned:
    """Tokens to give back. Callers work in single steps of a dict, as in `renewer`."""

    def __init__(self) -> None:
        self._tokens: dict[str, _Token] = {}

    def __len__(self) -> int:
        """Return their number."""
        return len(self._tokens)

    def __iter__(self) -> Iterator[str]:
        """Yield each of them."""
        return iter(list(self._tokens))

    def add(self, token: str, after_s: float = 0.0) -> float:
        """Add a token, to be given back after so many seconds; return the time of that."""
        now = local_now()
        self._tokens[token] = _Token(now + ABANDON_S, now + after_s)
        return now + after_s

    def hurry(self, token: str) -> None:
        """Have a token given back now."""
        if (found := self._tokens.get(token)) is not None:
            found.next_at = local_now()

    def first_at(self) -> float | None:
        """Return the time of the next; None: there is none."""
        return min((each.next_at for each in list(self._tokens.values())), default=None)

    def due(self, now: float) -> list[str]:
        """Return those whose time has come, as many as go at once."""
        return [t for t, each in list(self._tokens.items()) if each.next_at <= now][:BATCH]

    def tried(self, token: str, *, final: bool) -> None:
        """Take note of a try to give a token back; final: no other makes sense."""
        found, now = self._tokens.get(token), local_now()
        if found is not None and not final and found.until >= now:
            found.next_at = now + RETRY_S
        else:
            self.settle(token)

    def postpone(self, now: float) -> None:
        """Try all of them again soon, but those that have been tried for too long."""
        for token, each in list(self._tokens.items()):
            each.next_at = now + RETRY_S
            if each.until < now:
                log.warning("lease %s was not given back: its ttl ends it", token[:8])
                self.settle(token)

    def settle(self, token: str) -> None:
        """Forget a token: nothing of it is left to give back."""
        self._tokens.pop(token, None)
