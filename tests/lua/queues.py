"""A pool with full devices, and the agents that wait for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.audit import audit
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from tests.servers import Server

DAY_MS = 86_400_000


@dataclass
class Queue:
    """A pool with devices that are full, and agents that wait for them."""

    pool: Pool
    asks: dict[str, dict[str, Any]]
    served: list[str]

    @classmethod
    def on(cls, server: Server, *sizes: int, host: str = "h1") -> Queue:
        """Full devices of these sizes, each held by `hold-<n>`."""
        pool = Pool(server.connect())
        pool.freeze()
        queue = cls(pool, {}, [])
        queue.host(host, *sizes)
        return queue

    def host(self, name: str, *sizes: int, full: bool = True) -> None:
        """A host with devices of these sizes."""
        found = tuple(device(f"{name}-{n}", mb, index=n) for n, mb in enumerate(sizes))
        self.pool.report(found, host=name, deadline_ms=DAY_MS)
        for uuid, _ in found if full else ():
            mb = self.pool.number(uuid, "total_mb")
            ask = {"memory_mb": mb, "host": name, "exclusive": 1, "ttl_ms": 0}
            granted(self.pool.acquire(token(f"hold-{uuid}"), f"hold-{uuid}", **ask))

    def wait(self, name: str, **ask: Any) -> str:
        """Join, a millisecond after the waiter before."""
        self.pool.skew(1)
        self.asks[name] = {"agent": name, "ttl_ms": 0} | ask
        return self.poll(name)

    def poll(self, name: str) -> str:
        """Ask again; remember who was served when."""
        reply = self.pool.acquire(token(name), wait_ms=60_000, **self.asks[name])
        if reply[0] == "GRANTED" and name not in self.served:
            self.served.append(name)
        return str(reply[0])

    def poll_all(self) -> None:
        """Each waiter that has not been served asks again."""
        for name in self.asks:
            if name not in self.served:
                self.poll(name)

    def end(self) -> None:
        """Every invariant holds."""
        audit(self.pool.redis, self.pool.keys)
        self.pool.redis.close()
