"""Largest device of a pool, for a request that none could ever hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_sdk.errors import CODES, NeverFits, error_for
from agent_sdk.protocol.messages import ANY, Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.devices import AMD
from agent_sdk.state.readings import names

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Request


MOST_READ: Final = 1024
"""Most devices of which it is read whether they are parts of others."""


def never_fits(keys: Keys, request: Request) -> Generator[Read, Answer, NeverFits]:
    """Build the error of a request that fits nowhere, with the size of the largest device."""
    key = keys.fits_of(request.host, request.model)
    answer = yield Read((("ZRANGE", key, 0, 0, "REV", "WITHSCORES"), ("ZCARD", key)))
    largest_mb, count = _largest(answer)
    parts = 0
    if count and request.devices > 1:
        answer = yield Read((("ZRANGE", key, 0, MOST_READ - 1),))
        ids = names(answer)
        answer = yield Read(tuple(("HGET", keys.device(uuid), "parent") for uuid in ids))
        found = zip(ids, answer.raw, strict=True)
        parts = sum(bool(parent) and not uuid.startswith(AMD) for uuid, parent in found)
    there = f" of host {request.host}" if request.host != ANY else ""
    there += f" of model {request.model}" if request.model != ANY else ""
    if not count:
        more = ""
    elif request.devices == 1:
        more = f": the largest device{there} has {largest_mb} MiB"
    else:
        more = (
            f": {request.devices} of one host and model are asked for, and there are "
            f"{count - parts}{there}, the largest with {largest_mb} MiB"
        )
        if parts:
            more += "; parts of a divided GPU are not granted together: a program can use one"
    error = error_for("never_fits", CODES["never_fits"].says + more, token=request.token)
    assert isinstance(error, NeverFits)  # noqa: S101 - by the table of codes
    return error


@of_known_form
def _largest(answer: Answer) -> tuple[int, int]:
    """Return the MiB of the largest device, and the count of devices; RESP2 and RESP3 differ."""
    found, count = answer.raw
    if not found:
        return 0, 0
    pair = found[0] if isinstance(found[0], (list, tuple)) else found
    return int(float(pair[1])), int(count)
