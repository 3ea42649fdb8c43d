"""The start of a replica, and the end of its tasks."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.routing import APIRoute

from broker import app
from broker.mcp import streamable_http
from broker.settings import Settings
from broker.tasks import end
from tests.program import called

if TYPE_CHECKING:
    from tests.servers import Server


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
    """The first look through the routes costs no more than later ones, but for some noise."""
    made = app.build_app(Settings(GPU_BROKER_DEVICES="none"))
    took = []
    for _ in range(5):
        began = time.thread_time()
        for route in made.router.routes:
            route.matches(
                {"type": "http", "method": "GET", "path": "/", "headers": [], "app": made}
            )
        took.append(time.thread_time() - began)
    assert took[0] < max(took[1:]) * 10 + 0.01


def test_types_of_answers_are_built_for_the_document_alone() -> None:
    """No route of a start has them, and each that is described has them in the document."""
    made = app.build_app(Settings(GPU_BROKER_DEVICES="none"))
    routes = [route for route in made.router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 30
    assert not any(route.response_fields for route in routes)
    described = {route.path for route in routes if route.include_in_schema}
    document = made.openapi()
    assert set(document["paths"] | document["x-streams"]) == described
    for item in document["paths"].values():
        for operation in item.values():
            problem = operation["responses"]["503"]["content"]["application/json"]["schema"]
            assert problem["$ref"].startswith("#/components/schemas/")


async def test_garbage_is_searched_for_when_a_start_is_over(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve` starts without searches; the running application has them, but for its parts."""
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("GPU_BROKER_POOL", "garbage")
    made = app.build_app(Settings(GPU_BROKER_DEVICES="none"))
    gc.disable()
    try:
        async with made.router.lifespan_context(made):
            assert gc.isenabled()
            assert gc.get_freeze_count() > 10_000
    finally:
        gc.enable()


def test_garbage_is_searched_for_after_a_start_that_fails() -> None:
    """A program that calls `serve` goes on as it was."""
    assert called("serve", GPU_BROKER_DEVICES="sim:none").returncode != 0
    assert gc.isenabled()


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
