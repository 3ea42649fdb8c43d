"""Connections to the store, set up so that nothing repeats a call behind our back.

redis-py by default repeats a timed-out call many times, for up to a minute: longer than most leases
last, and unseen. Here every call is sent once; `patience` decides about the next try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.retry import Retry

NO_URL = "the store's URL must be redis://, rediss:// or unix://, with a port that is a number"


@dataclass(frozen=True, slots=True)
class Store:
    """A Redis or Valkey server by URL: `redis://`, `rediss://` or `unix://`.

    Attributes:
        url: where it is.
        timeout_s: for connecting and for each answer.
    """

    url: str
    timeout_s: float = 1.0

    def connect(self) -> redis.Redis:
        """A blocking client. Connects at the first call.

        Raises:
            ValueError: the URL is none; its words never hold the password.
        """
        try:
            return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), **self._options())
        except ValueError:
            raise ValueError(NO_URL) from None

    def connect_async(self) -> redis.asyncio.Redis:
        """The same for asyncio."""
        retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        try:
            return redis.asyncio.Redis.from_url(self.url, retry=retry, **self._options())
        except ValueError:
            raise ValueError(NO_URL) from None

    def _options(self) -> dict[str, Any]:
        return {
            "decode_responses": True,
            "encoding_errors": "replace",
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.timeout_s,
        }
