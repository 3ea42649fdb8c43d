"""Hooks of schemathesis, which gives an answer 10 s: a wait that is allowed lasts a second."""

from __future__ import annotations

from typing import Any

import schemathesis

WAIT_S, LONGEST_S = 1.0, 60.0


@schemathesis.hook
def map_body(_: Any, body: Any) -> Any:
    """Shorten the wait of a request; what no request may ask for stays as it is."""
    wait_s = body.get("wait_s") if isinstance(body, dict) else None
    if type(wait_s) in {int, float} and WAIT_S < wait_s <= LONGEST_S:
        return body | {"wait_s": WAIT_S}
    return body
