"""`gpu-broker drain` and `undrain`: devices and hosts that take no new leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from agent_sdk.errors import error_for
from broker.cli.complete import hosts_and_devices
from broker.cli.store import output_option, pool_client, show
from broker.cli.table import many

if TYPE_CHECKING:
    from agent_sdk import LeaseClient


@click.command()
@click.argument("name", metavar="DEVICE|HOST", shell_complete=hosts_and_devices)
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def drain(name: str, reason: str, output: str) -> None:
    """Let a device, or a host with all it has, take no new leases; those that run go on.

    \b
    Examples:
      gpu-broker drain gpu-host-3 --reason 'driver update at noon'
      gpu-broker drain GPU-8f3a2c1e-1111-2222-3333-444455556666
    """
    with pool_client() as client:
        what = _kind(client, name)
        count = client.drain(what, name, why=reason)
    takes = many(count, "device takes", "devices take")
    show(output, f"{what} {name}: {takes} no new leases", {"devices": count})


@click.command()
@click.argument("name", metavar="DEVICE|HOST", shell_complete=hosts_and_devices)
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def undrain(name: str, reason: str, output: str) -> None:
    """Let a device or a host take leases again; a quarantine of its GPUs is lifted too.

    \b
    Example:
      gpu-broker undrain gpu-host-3
    """
    with pool_client() as client:
        what = _kind(client, name)
        count = client.undrain(what, name, why=reason)
    takes = many(count, "device takes", "devices take")
    show(output, f"{what} {name}: {takes} leases again", {"devices": count})


def _kind(client: LeaseClient, name: str) -> Literal["device", "host"]:
    """What the name names; a host's name wins.

    Raises:
        NeverFits: neither a host nor a device is called so; the message has those that are.
    """
    hosts = {host.host for host in client.hosts()}
    if name in hosts:
        return "host"
    if any(device.uuid == name for device in client.devices()):
        return "device"
    raise error_for(
        "device_unknown",
        f"no host and no device is called {name!r}; hosts: {', '.join(sorted(hosts)) or 'none'}; "
        "devices: gpu-broker status -o json",
    )
