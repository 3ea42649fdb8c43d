"""Callers of either client, and the wire between them and the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agent_sdk import AsyncLeaseClient, LeaseClient, Store
from agent_sdk.state.snapshot import leases

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pools import Pool


class Wire:
    """Between client and server: what the client sends, and which replies are lost."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.lose = 0
        self.at_reply: Callable[[], object] = lambda: None

    def passes(self, _: bytes) -> bool:
        if self.lose:
            self.lose -= 1
            return False
        self.at_reply()
        return True

    def answers(self, chunk: bytes) -> None:
        self.sent.append(chunk)

    def exchanges(self) -> int:
        """Return how often a release and an acquire came in one chunk, in this order."""
        found = [(chunk.find(b"gpu_release"), chunk.find(b"gpu_acquire")) for chunk in self.sent]
        return sum(0 <= release < acquire for release, acquire in found)


class Caller:
    """Either client, called without asyncio."""

    def __init__(self, kind: str, url: str, pool: Pool, deadline_s: float, **options: Any) -> None:
        made: Any = LeaseClient if kind == "sync" else AsyncLeaseClient
        self.loop = asyncio.new_event_loop() if kind == "async" else None
        self.client = made(
            Store(url), pool=pool.keys.pool_name, hostname="h1", deadline_s=deadline_s, **options
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            made = getattr(self.client, name)(*args, **options)
            return self.loop.run_until_complete(made) if self.loop else made

        return call


def living(pool: Pool) -> set[str]:
    """Return the tokens of the living leases."""
    return {lease.token for lease in pool.look(leases(pool.keys))}
