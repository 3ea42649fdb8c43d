"""Answers with an ETag: a client that has the same body already gets 304 without it.

Tokens are in some: so `Cache-Control` stays `no-store`, and no cache keeps what a client may.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from fastapi.responses import Response, StreamingResponse

from broker.live.slices import JSON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

MOST_BYTES: Final = 1_048_576
"""Longest body that is kept whole for its tag; a longer one is sent as it is made, without."""

TAGGED: Final[dict[str, Any]] = {
    "headers": {
        "ETag": {
            "description": "Sent back in `If-None-Match`: 304 without a body if it is the same.",
            "schema": {"type": "string"},
        }
    }
}
"""Description of the header, for a route's answer. A 304 has no body, which generators would take
for one of any type: so the document has neither it nor the header that asks for it.
"""


def tagged(request: Request, body: bytes) -> Response:
    """Return a body with its ETag, or 304 to a request that names the same one."""
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag}
    if {tag, "*"} & known_tags(request):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=JSON, headers=headers)


async def tagged_list(request: Request, pieces: AsyncIterator[bytes]) -> Response:
    """Return the same of a body in pieces; of a long one the pieces as they are made, untagged."""
    parts, size = [], 0
    async for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MOST_BYTES:
            return StreamingResponse(_all(parts, pieces), media_type=JSON)
    return tagged(request, b"".join(parts))


def known_tags(request: Request) -> set[str]:
    """Return the tags that a request names; a proxy that compresses makes a strong one weak."""
    said = ",".join(request.headers.getlist("if-none-match"))
    return {each.strip().removeprefix("W/") for each in said.split(",")}


async def _all(parts: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    async for part in rest:
        yield part
