"""Ends of leases, remembered by the pool for 15 minutes: see `lua/lib/tombstones.lua`."""

from __future__ import annotations

from typing import Final, NamedTuple

from agent_sdk.keys import token_digest

SIZE: Final = 28
"""Bytes of an entry: 16 of the token's digest, a letter, 11 of a time in ms, hexadecimal."""

OUTCOMES: Final = {
    "r": "released", "e": "expired", "v": "revoked", "c": "cancelled", "t": "timed_out",
    "s": "superseded", "p": "preempted",
}  # fmt: skip


class EndedLease(NamedTuple):
    """Ended lease.

    Attributes:
        outcome: a word of `errors.CODES`.
        at_ms: its end, on the pool's clock.
    """

    outcome: str
    at_ms: int


def ended(shard: str | None, token: str) -> EndedLease | None:
    """Return the end of a token's lease, by its shard; None: the shard has none."""
    mark, entries = token_digest(token)[4:20], shard or ""
    for at in range(0, len(entries), SIZE):
        if entries.startswith(mark, at):
            outcome = OUTCOMES[entries[at + 16]]
            return EndedLease(outcome, int(entries[at + 17 : at + SIZE], 16))
    return None
