"""One call of each verb, and the frame of a reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import operator, report
from agent_sdk.protocol.messages import Answer, Call, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


REQUEST = Request(
    token="t" * 16, agent="analyst", memory_mb=900, devices=2, exclusive=True, ttl_ms=30000,
    max_hold_ms=5, priority=7, host="h1", model="m1", placement="pack", on_unavailable="cpu",
    client="c", pid="1:2", owner="o",
)  # fmt: skip


REPORT = {
    "deadline_ms": 15000, "sampled_ms": 5, "epoch": "123", "safe_mode": True, "version": "1",
}  # fmt: skip


VERBS: dict[str, Callable[[], Generator[Call, Answer, Any]]] = {
    "acquire": lambda: protocol.acquire(REQUEST),
    "renew": lambda: protocol.renew(REQUEST.token, 7, 1000, "ann"),
    "renew_many": lambda: protocol.renew_many([(REQUEST.token, 7, 1000)], "ann"),
    "release": lambda: protocol.release(REQUEST.token, owner="ann"),
    "reap": protocol.reap,
    "report": lambda: report.report("h1", (), **REPORT),
    "revoke": lambda: operator.revoke(REQUEST.token, force=True, by="op", why="because"),
    "drain": lambda: operator.drain("host", "h1", drained=True, by="op", why=""),
    "forget": lambda: operator.forget("host", "h1", by="op", why=""),
    "release_driver": lambda: operator.release_driver("h1", for_ms=1, by="op", why=""),
    "set_policy": lambda: operator.set_policy("op", safe_mode=True),
    "set_teams": lambda: operator.set_teams({"lab": {"weight": 2}}, by="op", version=1),
    "ask": lambda: operator.request_yield(REQUEST.token, "w" * 16, owner="ann"),
    "extend": lambda: operator.extend_hold(REQUEST.token, 1000, by="op", owner="ann"),
}
"""One call of each verb."""


FRAME = [1000, "", "123", 0]
