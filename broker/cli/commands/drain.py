"""`gpu-broker drain`, `undrain`, `forget`: devices and hosts that take no leases, or are gone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from agent_sdk.errors import BadRequest, NeverFits
from broker.cli.complete import hosts_and_devices
from broker.cli.names import Target, target_of
from broker.cli.store import output_option, pool_client, show
from broker.text.table import many

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import LeaseClient


@click.command()
@click.argument("name", metavar="DEVICE|HOST", shell_complete=hosts_and_devices)
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def drain(name: str, reason: str, output: str) -> None:
    """Stop new leases on a device, or on a host with all its devices; running ones go on.

    A divided GPU is drained with its parts, and so is what it is divided into later. Nothing ends.
    No report and no restart of a broker, a host or an agent undoes it; a Redis that loses its data
    may lose it. The way back is gpu-broker undrain.

    \b
    Examples:
      gpu-broker drain gpu-host-3 --reason 'driver update at noon'
      gpu-broker drain gpu-host-3:0
      gpu-broker drain GPU-8f3a2c1e-1111-2222-3333-444455556666
    """
    with pool_client() as client:
        target = target_of(client, name)
        count = client.drain(*target, why=reason)
    takes = many(count, "device takes", "devices take")
    show(output, f"{target.kind} {target.name}: {takes} no new leases", {"devices": count})


@click.command()
@click.argument("name", metavar="DEVICE|HOST", shell_complete=hosts_and_devices)
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def undrain(name: str, reason: str, output: str) -> None:
    """Allow new leases on a device or a host again; this also lifts a quarantine of its GPUs.

    Of a host it lifts every drain and every quarantine of its GPUs, of a divided GPU those of its
    parts: name a GPU, or a part, where others must stay out.

    \b
    Examples:
      gpu-broker undrain gpu-host-3
      gpu-broker undrain gpu-host-3:0
    """
    with pool_client() as client:
        target, count = _ended(client, name, lambda target: client.undrain(*target, why=reason))
    takes = many(count, "device takes", "devices take")
    show(output, f"{target.kind} {target.name}: {takes} leases again", {"devices": count})


@click.command()
@click.argument("name", metavar="DEVICE|HOST", shell_complete=hosts_and_devices)
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def forget(name: str, reason: str, output: str) -> None:
    """Remove a device, or a host with all its devices, from the pool.

    For what is gone for good: it leaves lists, totals and alerts. It is refused while a lease is on
    it. What is still there comes back with its host's next report, within seconds, as new: without
    its drain. To empty a host for maintenance, drain it. The pool also forgets by itself: see
    forget_devices_after_s and forget_hosts_after_s of the policy.

    \b
    Examples:
      gpu-broker forget gpu-host-3 --reason 'sent back'
      gpu-broker forget gpu-host-3:0
      gpu-broker forget GPU-8f3a2c1e-1111-2222-3333-444455556666
    """
    with pool_client() as client:
        target, count = _ended(client, name, lambda target: client.forget(*target, why=reason))
    gone = f", with {many(count, 'device', 'devices')}" if target.kind == "host" else ""
    show(output, f"{target.kind} {target.name}: forgotten{gone}", {"devices": count})


def _ended(client: LeaseClient, name: str, act: Callable[[Target], int]) -> tuple[Target, int]:
    """Act on the named target, also on a forgotten one of which the pool knows the drain.

    Returns:
        The target, and the result of the act.
    """
    try:
        target = target_of(client, name)
    except NeverFits as unknown:
        for target in (Target("host", name), Target("device", name)):
            with suppress(NeverFits, BadRequest):  # it may be no name that one could have
                return target, act(target)
        raise unknown from None
    return target, act(target)
