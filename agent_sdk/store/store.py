"""Store by its URL, with connections that repeat no call behind our back.

redis-py by default repeats a timed-out call many times, for up to a minute: longer than most leases
last, and unseen. Here every call is sent once; `retry` decides about the next try.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agent_sdk.lazy import LazyModule, later
from agent_sdk.store.url import parse

if TYPE_CHECKING:
    import redis
    import redis.asyncio
    import redis.backoff
    import redis.retry

    from agent_sdk.store import connections, discovery, pools
else:  # redis-py is most of a program's start: one that connects in another way does without
    redis = LazyModule("redis")
    connections, discovery, pools = later("store.connections", "store.discovery", "store.pools")


@dataclass(frozen=True, slots=True)
class Store:
    """Redis or Valkey by URL: one server, one that Sentinels watch, or a Cluster.

    `redis://host:6379/0`, `rediss://`, `unix:///path`, `redis+sentinel://h1,h2,h3/service/0`,
    `redis+cluster://h1,h2`, and the last two with `rediss+` for TLS.

    Attributes:
        url: its URL; it may hold a password, so it is not shown.
        timeout_s: seconds for connecting, with the search for the primary, and for each answer.
            The URL's `socket_timeout` and `socket_connect_timeout` go before it.
        key: a key of the pool: in a Cluster, calls go to the node of its slot.
        blocks_s: seconds that a call may wait in the server: answers take so much longer.
    """

    url: str = field(repr=False)
    timeout_s: float = 1.0
    key: str = ""
    blocks_s: float = 0.0

    def connect(self) -> redis.Redis:
        """Return a blocking client, which connects at the first call.

        Raises:
            ValueError: the URL is invalid; the message never has the password.
        """
        options = self._options("")
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        pool = pools.Pool(retry=retry, **options)
        return redis.Redis.from_pool(pool)

    def connect_async(self) -> redis.asyncio.Redis:
        """Return the same for asyncio."""
        options = self._options("Async")
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)
        pool = pools.AsyncPool(retry=retry, **options)
        return redis.asyncio.Redis.from_pool(pool)

    def _options(self, kind: Literal["", "Async"]) -> dict[str, Any]:
        """Return the options of a pool of connections."""
        where = parse(self.url)
        options = {
            "connection_class": getattr(connections, f"{kind}{where.transport.title()}Connection"),
            "decode_responses": True,
            "encoding_errors": "replace",
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.timeout_s,
            **where.options,
        }
        options["socket_timeout"] += self.blocks_s
        if where.service:
            options["primary"] = discovery.SentinelPrimary(where)
        elif where.nodes:
            options["primary"] = discovery.ClusterPrimary(where, self.key)
        return options
