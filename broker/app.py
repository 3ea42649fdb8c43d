"""Facade: the one place where settings, store, reporter, ticker and routes meet."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING

from fastapi import FastAPI

from agent_sdk import AsyncLeaseClient, Store
from broker import __version__, dashboard
from broker.hooks.addresses import Addresses
from broker.hooks.sender import HookSender
from broker.http import health, leases, openapi, operators, pool, scrape, streams
from broker.http.auth import KeyCheck
from broker.http.document.finish import document_of
from broker.http.every_request import EveryRequest
from broker.http.hot_routes import HotRoutes
from broker.http.problems import install_handlers, too_large
from broker.http.teams import routes as teams
from broker.http.usage import routes as usage
from broker.live.feed import Feed
from broker.live.view import View
from broker.logs import VerbLog
from broker.maintenance.reaper import Ticker
from broker.mcp.streamable_http import McpEndpoint
from broker.metrics import Metrics
from broker.replica import Broker
from broker.reporter import Reporter, source_of
from broker.systemd import Systemd
from broker.tasks import end
from broker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from agent_sdk.state.events import News
    from broker.api_keys import Keyring
    from broker.settings import Settings

log = logging.getLogger(__name__)

CALL_TIMEOUT_S, CALL_DEADLINE_S = 0.7, 1.1
"""Limits that let a request be answered within 2 s, even without Redis."""

BODY_BYTES = 16_384


def build_app(settings: Settings, worker: Worker | None = None) -> FastAPI:
    """Build the HTTP application; serving it starts reporting and reaping.

    `worker`: this process's part among several.

    Raises:
        DeviceSourceError: the device source is unavailable.
    """
    source, systemd, worker = source_of(settings), Systemd(), worker or Worker()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = AsyncLeaseClient(
            Store(settings.sdk.store_url, CALL_TIMEOUT_S),
            pool=settings.sdk.pool,
            client_name="broker",
            hostname=settings.sdk.hostname,
            deadline_s=CALL_DEADLINE_S,
            for_others=True,
        )
        anew = getattr(app.state, "store_began_anew", False)
        reporter = Reporter(client, source, settings, pool_was_lost=anew)
        view = View(client, lambda: broker.about)

        def ticked(problem: str | None) -> None:
            systemd.ticked(problem)
            view.glance()

        ticker = Ticker(client, ticked, metrics.looked, lambda: worker.leads)
        feed = Feed(client, view.remember, (count, view.heard))
        hook_sender = HookSender(
            client, replica=replica, addresses=Addresses(settings.hooks_allow), feed=feed,
            give_up_s=settings.hooks_give_up_s, count=metrics.hooks, leads=lambda: worker.leads,
        )  # fmt: skip
        broker = Broker(
            settings, source, client, reporter, ticker, metrics, replica, keys, feed, view,
            worker, hook_sender.registry,
        )  # fmt: skip
        client.by = f"serve {settings.sdk.hostname} {broker.replica}"
        app.state.broker, app.state.hurried, app.state.draining = broker, False, None
        work = (
            worker.report(reporter), ticker.run(), feed.run(), view.run(feed),
            broker.decide_safe_mode(), broker.dismiss(), hook_sender.run(),
            *([mcp.run(broker)] if mcp else []),
        )  # fmt: skip
        tasks = [asyncio.create_task(each) for each in work]
        for task in tasks:
            task.add_done_callback(_log_failure)
        # What lives as long as this process is not looked through at each full collection, which
        # would hold the loop for a tenth of a second. `serve` begins without collections.
        gc.freeze()
        gc.enable()
        try:
            yield
        finally:
            systemd.stopping()
            if settings.drain_on_stop_s and worker.leads and not app.state.hurried:
                draining = asyncio.create_task(reporter.drain(settings.drain_on_stop_s))
                app.state.draining = draining
                with suppress(asyncio.CancelledError):  # a second signal ends it
                    await draining
            await end(tasks)
            await client.close()
            source.close()

    place, keys = worker.place, settings.keyring()
    replica, mcp = worker.replica, None if settings.mcp == "off" else McpEndpoint(settings)
    metrics = Metrics(__version__, replica, place)

    def count(news: News) -> None:
        for event in news.events:
            metrics.flow.take(event, counts=worker.leads)

    app = Facade(
        title="GPU lease broker",
        description=openapi.DESCRIPTION,
        version=__version__,
        contact=openapi.CONTACT,
        license_info=openapi.LICENSE,
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
        max_body_size=BODY_BYTES,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere; ours does not
        redoc_url=None,
        openapi_url=None,  # the router `openapi` has it
    )
    install_handlers(app)
    # Routes of a router that is included are built a second time, which takes as long as a tenth
    # of a start, or of the first request.
    parts = (leases, health, pool, scrape, operators, teams, usage, streams, dashboard, openapi)
    for router in (leases.hot, *(part.router for part in parts)):
        app.router.routes.extend(router.routes)
    if mcp:
        app.router.routes.append(mcp.route)
    app.mount("/docs/static", openapi.assets())
    app.mount(dashboard.ASSETS, dashboard.assets())
    app.openapi = cache(partial(document_of, app))  # type: ignore[method-assign] # FastAPI's own way
    app.wrap(settings, keys, metrics)
    return app


class Facade(FastAPI):
    """FastAPI's application behind what every request has, and behind the frequent routes."""

    def wrap(self, settings: Settings, keys: Keyring, metrics: Metrics) -> None:
        """Put the layers around the routes."""
        self.hot = HotRoutes(self, self._other, leases.hot.routes, BODY_BYTES)
        self._front = EveryRequest(
            self.hot,
            KeyCheck(keys, loopback=settings.answers_to_local_names),
            metrics,
            VerbLog(),
            prefix=settings.root_path,
            origins=settings.origins,
        )

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by FastAPI, which itself would refuse an announced length in plain text."""
        await (too_large(scope, BODY_BYTES) or super().__call__)(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan."""
        if scope["type"] == "http":
            await self._front(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log the end of background work, unless we stopped it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a part of this replica has stopped working", exc_info=error)
