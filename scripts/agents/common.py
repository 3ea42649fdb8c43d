"""Parts of every agent here: its port, /health and /ready, and a clean stop at SIGTERM."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import uvicorn
from fastapi import FastAPI
from pydantic import Field
from watchdog import autostart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PORTS = Path(__file__).parents[2] / "deploy" / "ports.env"
"""Lines `name=port`: the one place where a port is set."""

STOP_S = 5
"""Seconds that a request may hold up a stop."""


@dataclass(frozen=True, slots=True)
class Article:
    """The text that goes down the pipeline."""

    id: str
    title: str
    text: Annotated[str, Field(max_length=100_000)]

    @property
    def whole(self) -> str:
        """Title and text."""
        return f"{self.title}. {self.text}"


Articles = Annotated[list[Article], Field(max_length=100)]
"""A batch."""


def build_app(
    name: str,
    *,
    about: Callable[[], dict[str, Any]] = dict,
    during: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
) -> FastAPI:
    """Build an agent without its own endpoints.

    Args:
        name: as in deploy/ports.env.
        about: what /health says beside the usual.
        during: a block around all requests: the agent is ready inside it.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watchdog = autostart()
        app.state.watchdog = watchdog
        try:
            async with during():
                yield
        finally:
            watchdog.stop()

    app = FastAPI(title=name, lifespan=lifespan)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Alive: 200 whatever the orchestrator does."""
        usual = {"status": "ok", "agent": name, "gpu_watchdog": app.state.watchdog.state}
        return usual | about()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        """Able to work, which no agent needs a GPU for."""
        return {"ready": True}

    return app


def arguments(name: str, says: str | None) -> argparse.ArgumentParser:
    """Return the options of every agent; `serve` needs what they parse to."""
    parser = argparse.ArgumentParser(prog=name, description=says)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="default: as in deploy/ports.env")
    return parser


def serve(app: FastAPI, asked: argparse.Namespace) -> None:
    """Answer until SIGTERM or Ctrl-C, and exit 0 then; 2 when the port cannot be had."""
    name = app.title
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(message)s")
    port = port_of(name) if asked.port is None else asked.port
    try:
        listener = socket.create_server((asked.host, port), backlog=128)
    except OSError as error:
        _refuse(f"{name}: port {port} on {asked.host} cannot be had: {error.strerror}")
    print(f"{name} on http://{asked.host}:{listener.getsockname()[1]}", flush=True)
    # uvicorn stops in good order, and then raises the signal once more for whoever was before it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_S
    )
    uvicorn.Server(config).run(sockets=[listener])


def port_of(name: str) -> int:
    """Return an agent's port; exits with 2 when deploy/ports.env has none for it."""
    lines = PORTS.read_text().splitlines() if PORTS.exists() else []
    pairs = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    try:
        return int(pairs[name])
    except (KeyError, ValueError):
        _refuse(f"{name}: deploy/ports.env has no port for it, and none was named")


def _refuse(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(2)
