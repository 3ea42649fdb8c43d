"""The start of a replica, and the end of its tasks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker import app
from broker.mcp import streamable_http
from broker.settings import Settings
from broker.tasks import end


async def test_task_that_swallows_a_cancellation_is_ended() -> None:
    """A task that loses its cancellation, as in Python 3.11's wait_for, ends like the others."""

    async def deaf() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(deaf()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(tasks)
    assert all(task.cancelled() for task in tasks)


def test_routes_are_built_before_the_first_request() -> None:
    """A start builds what FastAPI else builds at the first request; again it costs next to none."""
    made = app.build_app(Settings(GPU_BROKER_DEVICES="none"))
    took = []
    for _ in range(2):
        began = time.thread_time()
        app._build_routes(made)
        took.append(time.thread_time() - began)
    assert took[1] < took[0] / 10


@pytest.mark.parametrize(("switch", "there"), [("auto", True), ("off", False)])
def test_mcp_has_a_switch(switch: str, there: bool) -> None:
    """The path is taken away, and not only closed."""
    made = app.build_app(Settings(GPU_BROKER_DEVICES="none", GPU_BROKER_MCP=switch))
    assert ("/mcp" in {getattr(route, "path", "") for route in made.routes}) is there


async def test_mcp_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sentence, with the install line."""
    monkeypatch.setattr(streamable_http, "find_spec", lambda _: None)
    endpoint = streamable_http.McpEndpoint(Settings(GPU_BROKER_DEVICES="none"))
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await endpoint({"type": "http", "method": "POST", "headers": []}, None, send)
    assert said[0]["status"] == 404
    assert b"pip install 'gpu-lease-broker[mcp]'" in said[1]["body"]
