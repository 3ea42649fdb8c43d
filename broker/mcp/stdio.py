"""MCP over stdio: one client's server, whose leases end with either process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio

from broker.identity import user_at_host
from broker.text.screen import say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.mcp.server import LeaseServer
    from broker.mcp_terms import Terms

END_S: Final = 1.5
"""Most seconds of the clean-up: a client waits 2 s before it ends us."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

FAILED: Final = 1


def run(terms: Terms, agent: str) -> int:
    """Serve stdin and stdout until the client is gone or a signal comes; return the exit code."""
    # before the SDK configures it: stdout is the protocol's
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="gpu-broker mcp: %(message)s"
    )
    return asyncio.run(_serve(terms, agent))


def session_server(terms: Terms, agent: str = "") -> tuple[LeaseServer, asyncio.Event]:
    """Return a server whose leases end with it, and the event of their end.

    Raises:
        ValueError: a setting is wrong.
    """
    from broker.mcp.jobs import Jobs  # noqa: PLC0415 - after the check of the extra
    from broker.mcp.run_tool import RunTool  # noqa: PLC0415 - as above
    from broker.mcp.server import LeaseServer  # noqa: PLC0415 - as above
    from broker.mcp.session_leases import SessionLeases  # noqa: PLC0415 - as above

    leases, jobs, ended = SessionLeases(terms, agent), Jobs(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            # A client that is gone cancels all that runs here, at its first await.
            with anyio.CancelScope(shield=True), anyio.move_on_after(END_S):
                await asyncio.gather(jobs.end(), leases.end())
            ended.set()

    more = [RunTool(jobs, agent or user_at_host(), terms.ttl_s).gpu_run] if terms.may_run else []
    return LeaseServer(leases, more, lifespan=lifespan), ended


async def _serve(terms: Terms, agent: str) -> int:
    try:
        server, ended = session_server(terms, agent)
    except ValueError as error:
        say(f"gpu-broker mcp: {error}", err=True)
        return FAILED
    serving = asyncio.ensure_future(server.run_stdio_async())
    caught: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def catch(number: int) -> None:
        serving.cancel()
        if not caught.done():
            caught.set_result(number)

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, catch, number)
    over = asyncio.ensure_future(ended.wait())
    await asyncio.wait({serving, over}, return_when=asyncio.FIRST_COMPLETED)
    if not caught.done():  # the last answers, which a client may never read
        last: set[asyncio.Future[Any]] = {serving, caught}
        await asyncio.wait(last, return_when=asyncio.FIRST_COMPLETED)
    if caught.done():
        await asyncio.wait({over}, timeout=END_S)  # it never comes before the first request
        os._exit(128 + caught.result())  # a thread waits for a line that may never come
    over.cancel()
    return 0 if serving.exception() is None else FAILED
