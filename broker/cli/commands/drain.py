"""`gpu-broker drain`, `undrain`, `forget`: devices and hosts that take no leases, or are gone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

import click

from agent_sdk.errors import NeverFits, error_for
from broker.cli.complete import hosts_and_devices
from broker.cli.store import output_option, pool_client, show
from broker.text.table import many

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import LeaseClient

Kind: TypeAlias = Literal["device", "host"]


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
        what, count = _ended(client, name, lambda what: client.undrain(what, name, why=reason))
    takes = many(count, "device takes", "devices take")
    show(output, f"{what} {name}: {takes} leases again", {"devices": count})


@click.command()
@click.argument("name", metavar="DEVICE|HOST", shell_complete=hosts_and_devices)
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def forget(name: str, reason: str, output: str) -> None:
    """Take a device, or a host with all it has, out of the pool: it is there no more.

    \b
    It is refused while a lease is on it. What its host still lists is registered again, as new and
    without a drain, by the host's next report. Without this command the pool forgets by itself:
    see forget_devices_after_s and forget_hosts_after_s of the policy.

    \b
    Examples:
      gpu-broker forget gpu-host-3 --reason 'sent back'
      gpu-broker forget GPU-8f3a2c1e-1111-2222-3333-444455556666
    """
    with pool_client() as client:
        what, count = _ended(client, name, lambda what: client.forget(what, name, why=reason))
    gone = f", with {many(count, 'device', 'devices')}" if what == "host" else ""
    show(output, f"{what} {name}: forgotten{gone}", {"devices": count})


def _ended(client: LeaseClient, name: str, act: Callable[[Kind], int]) -> tuple[Kind, int]:
    """Do something to what the name names, also when the pool has forgotten it and knows its drain.

    Returns:
        What it is, and what the act returned.
    """
    try:
        what = _kind(client, name)
    except NeverFits as unknown:
        kinds: tuple[Kind, ...] = ("host", "device")
        for what in kinds:
            with suppress(NeverFits):
                return what, act(what)
        raise unknown from None
    return what, act(what)


def _kind(client: LeaseClient, name: str) -> Kind:
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
