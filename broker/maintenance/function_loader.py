"""A broker puts the verbs on its server as functions, and again when they are gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from agent_sdk.scripts.library import is_there, own_library

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient

log = logging.getLogger(__name__)


class Loading:
    """Of one client's server.

    Args:
        client: whose calls tell whether the functions are there.
    """

    def __init__(self, client: AsyncLeaseClient) -> None:
        self._client = client
        self._told = ""

    async def load_missing(self) -> None:
        """Load this version's library if the last call found none; until then scripts do."""
        client = self._client
        if not client.wording.missing:
            return
        client.wording.missing = False
        try:
            await client.redis.function_load(own_library().source)
            # Done rarely: a replica keeps two connections, its calls' and the stream's.
            await client.redis.connection_pool.disconnect(inuse_connections=False)
        except RedisError as error:
            # Another replica was first, or it may not be: in a while they are asked for again.
            if not is_there(error) and self._told != (said := str(error)):
                self._told = said
                log.info("functions: not loaded, scripts do their work: %s", said)
            return
        log.info("functions: loaded %s", own_library().name)
        client.wording.loaded()
