"""A broker puts the verbs on its server as functions, and again when they are gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from agent_sdk.functions import own_library

if TYPE_CHECKING:
    from agent_sdk import AsyncLeaseClient

log = logging.getLogger(__name__)


async def put_functions(client: AsyncLeaseClient) -> None:
    """Load this version's library if the last call found none; scripts do the work without."""
    if not client.wording.missing:
        return
    client.wording.missing = False
    try:
        await client.redis.function_load(own_library().source)
    except RedisError as error:
        if "already exists" not in str(error):  # another replica was first
            log.debug("functions: %s", error)
            return
    else:
        log.info("functions: loaded %s", own_library().name)
    client.wording.loaded()
