"""Bodies that are made in slices.

A body that is made in one go holds the event loop, and all other requests meanwhile. So a list is
read, made and sent piece by piece, and between two pieces other requests get their turn. It costs
the memory of a piece, however long it is.
"""

from __future__ import annotations

import asyncio
import json
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")

SLICE_S: Final = 0.002
"""Seconds of work before other tasks get their turn."""

PIECE: Final = 32_768
"""Bytes that are sent at once."""

PART: Final = 32
"""Rows that are read at once."""

JSON: Final = "application/json"


class Turns:
    """Work of one task that takes long, in slices."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def pause(self) -> None:
        """Let others have their turn, if this slice has lasted long enough."""
        if time.perf_counter() - self._began > SLICE_S:
            await asyncio.sleep(0)
            self._began = time.perf_counter()


def paged(
    found: Sequence[T], begin: int, limit: int | None, cursor: Callable[[T], str]
) -> tuple[Sequence[T], dict[str, Any]]:
    """Return a page of a list, and what the answer says of it: nothing, where none was asked for.

    Args:
        found: the whole list.
        begin: the place of the page's first row.
        limit: the most rows; None: all.
        cursor: gives the cursor after a row.
    """
    if limit is None:
        return found[begin:], {}
    shown = found[begin : begin + limit]
    more = len(found) > begin + len(shown)
    return shown, {"total": len(found), "next": cursor(shown[-1]) if more else None}


def parts_of(found: Iterable[T]) -> Iterator[list[T]]:
    """Yield a list in parts that are read at once."""
    rest = iter(found)
    while part := list(islice(rest, PART)):
        yield part


def dumped(said: Any) -> str:
    """Return JSON as every answer has it."""
    return json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def after(more: Mapping[str, Any]) -> str:
    """Return the end of an object after its list."""
    return f",{dumped(more)[1:]}" if more else "}"


async def listed(
    head: str, rows: AsyncIterator[str], tail: Callable[[], str]
) -> AsyncIterator[bytes]:
    """Yield a body in pieces: its head, the rows with commas between, its tail."""
    turns, parts, size, between = Turns(), [head], len(head), ""
    async for row in rows:
        parts.append(between + row)
        size += len(between) + len(row)
        between = ","
        if size >= PIECE:
            yield "".join(parts).encode()
            parts, size = [], 0
        await turns.pause()
    parts.append(tail())
    yield "".join(parts).encode()


async def answer(
    pieces: AsyncIterator[bytes], kind: str = JSON, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a body in pieces; one of a single piece has its length in the head.

    Raises:
        LeaseError: of the first piece. After it an error cuts the body off, so that none takes a
            part for the whole.
    """
    first = await anext(pieces)
    second = await anext(pieces, None)
    if second is None:
        return Response(first, media_type=kind, headers=headers)

    async def all_of_it() -> AsyncIterator[bytes]:
        yield first
        yield second
        async for piece in pieces:
            yield piece

    return StreamingResponse(all_of_it(), media_type=kind, headers=headers)
