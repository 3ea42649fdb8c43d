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
from broker.inventory import Reporter, source_of
from broker.settings import Settings, SettingsError, load_settings


@click.command()
def host() -> None:
    """Report this machine's GPUs to the pool, and nothing else: for GPU hosts without a broker.

    \b
    Example:
      REDIS_URL=redis://gpu-store:6379 ENABLE_NVML=true gpu-broker host
    """
    try:
        settings = load_settings()
        source = source_of(settings)
    except (SettingsError, DeviceSourceError) as error:
        click.echo(f"gpu-broker host: {error}", err=True)
        sys.exit(USAGE)
    logs.configure(settings.log_format)
    click.echo(f"reporting {settings.sdk.hostname}: {source.name}, pool {settings.sdk.pool}")
    asyncio.run(_report(settings, source))


async def _report(settings: Settings, source: Source) -> None:
    """Report until SIGTERM or SIGINT; the host's devices then go away at their deadline."""
    client = AsyncLeaseClient(
        Store(settings.sdk.store_url), pool=settings.sdk.pool, hostname=settings.sdk.hostname
    )
    reporting = asyncio.create_task(Reporter(client, source, settings).run())
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, reporting.cancel)
    with suppress(asyncio.CancelledError):
        await reporting
    await client.close()
    source.close()
