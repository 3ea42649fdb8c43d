"""Work of `gpu-broker host`: reports of this machine's devices."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from typing import Any

from agent_sdk import AsyncLeaseClient, Store
from broker import logs
from broker.cli import USAGE
from broker.cli.serving.hangup import stop_at_hangup
from broker.devices import DeviceSourceError, Source
from broker.reporter import Reporter, source_of
from broker.settings import Settings, SettingsError, load_settings
from broker.text.screen import say
from broker.text.table import many


def report(**said: Any) -> None:
    """Report until a signal ends it; wrong settings end the process with a sentence.

    `said`: settings of the command line; None where it says nothing.
    """
    try:
        settings = load_settings(**{name: v for name, v in said.items() if v is not None})
        source = source_of(settings)
    except (SettingsError, DeviceSourceError) as error:
        say(f"gpu-broker host: {error}", err=True)
        sys.exit(USAGE)
    logs.configure(settings.log_format)
    say(f"reporting {settings.sdk.hostname}: {source.name}, pool {settings.sdk.pool}")
    asyncio.run(_report(settings, source))


async def _report(settings: Settings, source: Source) -> None:
    """Report until SIGTERM or SIGINT; the host's devices then go away at their deadline."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    client = AsyncLeaseClient(
        Store(settings.sdk.store_url), pool=settings.sdk.pool, hostname=settings.sdk.hostname
    )
    client.by = f"host {settings.sdk.hostname}"
    reporter = Reporter(client, source, settings)
    reporting = asyncio.create_task(reporter.run())
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    stop_at_hangup()
    await stop.wait()
    if settings.drain_on_stop_s:
        draining = asyncio.create_task(reporter.drain(settings.drain_on_stop_s))
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, draining.cancel)
        with suppress(asyncio.CancelledError):
            left = await draining
            leases = (
                "unknown leases left" if left is None else many(left, "lease left", "leases left")
            )
            say(f"stopped with {leases} on {settings.sdk.hostname}")
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)
    await client.close()
    source.close()
