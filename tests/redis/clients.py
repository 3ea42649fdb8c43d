"""Clients of both kinds on stores that tests disturb."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent_sdk import AsyncLeaseClient, LeaseClient, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


LOOKED_S = 0.2
"""After the last verb: the next one asks which server this is."""


@contextmanager
def acquiring(
    kind: str, store: Store, pool: str, deadline_s: float
) -> Iterator[Callable[[str], str]]:
    """By the client of that kind: acquires under a token, and gives the lease's."""
    ask = {"memory_mb": 10, "ttl_s": 60}
    about = {"pool": pool, "hostname": "h1", "deadline_s": deadline_s}
    if kind == "sync":
        with LeaseClient(store, **about) as client:
            yield lambda token: client.acquire("a", token=token, **ask).token
    else:
        with asyncio.Runner() as runner:
            other = AsyncLeaseClient(store, **about)
            yield lambda token: runner.run(other.acquire("a", token=token, **ask)).token
            runner.run(other.close())
