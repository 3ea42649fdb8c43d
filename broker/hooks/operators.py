"""Operators' acts on hooks, and hooks as rows, for the HTTP API and the command line."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import error_for
from broker.hooks import chat
from broker.hooks.hook import Hook, checked_events, checked_name, checked_secret, has_web_scheme
from broker.hooks.hook import checked_web_url as web_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.hooks.registry import Registry, StreamEnd

TEST_S: Final = 15.0
"""Most seconds that the answer to a test is waited for."""

TAKEOVER_S: Final = 7.0
"""Seconds within which another broker delivers where one has died."""

LOOK_S: Final = 0.1

UNSERVED: Final = (
    "no broker delivers to hooks: start gpu-broker serve where pip install "
    "'gpu-lease-broker[broker,hooks]' was run"
)


def new_hook(
    url: str, *, name: str = "", on: Iterable[str] = (), secret: str = "", by: str = ""
) -> Hook:
    """Return a hook that is not written yet.

    Raises:
        BadRequest: an argument is wrong.
    """
    is_web = has_web_scheme(url)
    if secret and not is_web:
        raise error_for("bad_request", "only requests over HTTP are signed: leave the secret out")
    return Hook(
        name=checked_name(name),
        url=url,
        shown=web_url(url) if is_web else chat.checked_url(url),
        on=checked_events(on),
        secret=checked_secret(secret) if is_web else "",
        by=by,
    )


async def tested(registry: Registry, name: str) -> dict[str, Any]:
    """Have the sender send a test event; return its answer.

    Raises:
        Refused: there is no hook of that name.
        BrokerUnavailable: no broker delivers to hooks, or none in time.
    """
    test, began = await registry.ask_test(name), time.monotonic()
    while (waited_s := time.monotonic() - began) < TEST_S:
        await asyncio.sleep(LOOK_S)
        found = (await registry.find(name)).tested
        if test in found and (answer := json.loads(found)).pop("test", "") == test:
            return dict(answer)
        if waited_s > TAKEOVER_S and not await registry.is_served():
            raise error_for("store_unavailable", UNSERVED)
    raise error_for("store_unavailable", "no answer in time: try again")


def row_of(hook: Hook, end: StreamEnd) -> dict[str, Any]:
    """Return a hook as interfaces show it: never with its secret."""
    return {
        "name": hook.name,
        "url": hook.shown,
        "on": sorted(hook.events),
        "state": hook.state,
        "disabled": hook.disabled or None,
        "delivered": hook.delivered,
        "delivered_at": _at(hook.delivered_ms),
        "failed": hook.failed,
        "failing_since": _at(hook.failing_since_ms),
        "error": hook.error or None,
        "error_at": _at(hook.error_ms),
        "backlog": end.backlog(hook),
        "missed": hook.missed,
        "by": hook.by or None,
        "created_at": _at(hook.created_ms),
    }


def _at(ms: int) -> float | None:
    return ms / 1000 if ms else None
