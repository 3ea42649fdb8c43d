"""`gpu-broker host`: report this machine's devices, without HTTP."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress

import click

from agent_sdk import AsyncLeaseClient, Store
from broker import logs
from broker.cli import USAGE
from broker.devices import DeviceSourceError, Source
from broker.reporter import Reporter, source_of
from broker.settings import Settings, SettingsError, load_settings
from broker.text.screen import say
from broker.text.table import many

may_kill_option = click.option(
    "--may-kill",
    is_flag=True,
    help="End processes on this machine's GPUs where the policy asks for it (enforce,"
    " kill_on_oom): SIGTERM, after 5 s SIGKILL. Also GPU_BROKER_MAY_KILL=true.",
)


@click.command()
@click.option(
    "--drain-on-stop",
    "drain_s",
    type=click.FloatRange(0, 86400),
    metavar="SECONDS",
    help="When stopped, offer no GPU, and wait so long for the leases here; a second signal ends"
    " the wait. Default: GPU_BROKER_DRAIN_ON_STOP_S, else 0: leave at once.",
)
@may_kill_option
def host(drain_s: float | None, may_kill: bool) -> None:
    """Report this machine's GPUs to the pool, and nothing else: for GPU hosts without a broker.

    Leases do not need it: while it is away those that run go on, and after three missed reports
    the host gets no new ones.

    \b
    Examples:
      REDIS_URL=redis://gpu-store:6379 ENABLE_NVML=true gpu-broker host
      gpu-broker host --drain-on-stop 600
    """
    try:
        given = {"drain_on_stop_s": drain_s, "may_kill": may_kill or None}
        settings = load_settings(**{name: v for name, v in given.items() if v is not None})
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
