"""Loading of the verbs onto the server as functions, again whenever they are gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from agent_sdk.scripts.library import is_there, own_library
from broker.maintenance.rarely import one_connection

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient

log = logging.getLogger(__name__)


class Loading:
    """Loader of the functions of one client's server.

    Args:
        client: the client with the calls that miss the functions.
    """

    def __init__(self, client: AsyncLeaseClient) -> None:
        self._client = client
        self._told = ""

    async def load_missing(self) -> None:
        """Load this version's library if the last call missed it; until then scripts serve."""
        client = self._client
        if not client.wording.missing:
            return
        client.wording.missing = False
        try:
            async with one_connection(client.redis) as one:
                await one.function_load(own_library().source)
        except RedisError as error:
            # Another replica was first, or loading is denied: later calls tell whether they are
            # there.
            if not is_there(error) and self._told != (said := str(error)):
                self._told = said
                log.info("functions: not loaded, scripts do their work: %s", said)
            return
        log.info("functions: loaded %s", own_library().name)
        client.wording.loaded()
