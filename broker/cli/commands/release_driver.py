"""`gpu-broker release-driver`: a host's reporter lets go of the driver, for a reset of a GPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from broker.attribution.driver_release import LET_GO
from broker.cli.complete import hosts
from broker.cli.names import target_of
from broker.cli.store import output_option, pool_client, show
from broker.text.table import age
from broker.text.units import Duration

if TYPE_CHECKING:
    from agent_sdk import LeaseClient

WAIT_S: Final = 15.0
"""Most seconds that the command waits for the reporter."""

LOOK_S: Final = 0.2

LONGEST_S: Final = 86_400.0


@click.command()
@click.argument("name", metavar="HOST", shell_complete=hosts)
@click.option(
    "--for",
    "for_s",
    type=Duration(LONGEST_S),
    default="10m",
    show_default=True,
    help="When the driver is taken again, at the latest.",
)
@click.option("--end", is_flag=True, help="Take the driver again now.")
@click.option("--reason", default="", help="Why, for the log.")
@output_option()
def release_driver(name: str, for_s: float, end: bool, reason: str, output: str) -> None:
    """Make a host's reporter let go of the driver, so that a GPU can be reset.

    Nothing may have a GPU open while nvidia-smi resets it. Until --end, or until --for is over, the
    host's GPUs take no new leases and their readings are unknown; leases on them run on. The exit
    code is 1 while the reporter has not let go.

    \b
    Examples:
      gpu-broker release-driver gpu-host-3 --reason 'reset of GPU 2'
      gpu-broker release-driver gpu-host-3 --end
    """
    with pool_client() as client:
        if target_of(client, name).kind == "device":
            raise click.UsageError(f"{name} is one GPU, and its host has the driver: name the host")
        end = end or not for_s  # for no time: as the verb has it
        until_ms = client.release_driver(name, for_s=0 if end else for_s, why=reason)
        if client.pool().safe_mode:
            done, text = True, f"host {name}: SAFE_MODE is on, so its reporter holds no driver"
        elif end:
            done, text = True, f"host {name}: its reporter takes the driver again"
        else:
            done, text = _awaited(client, name, age(int(for_s * 1000)))
    show(output, text, {"released": done and not end, "until_ms": until_ms})
    if not done:
        raise SystemExit(1)


def _awaited(client: LeaseClient, host: str, lasts: str) -> tuple[bool, str]:
    """Wait until the host says that it let go; return whether it did, and the sentence about it."""
    until = time.monotonic() + WAIT_S
    while True:
        reasons = {device.reason for device in client.devices() if device.host == host}
        told = [reason for reason in reasons if reason.startswith(LET_GO)]
        if told and len(told) == len(reasons):
            break
        if time.monotonic() > until:
            return False, f"host {host}: its reporter has not let go of the driver yet"
        time.sleep(LOOK_S)
    _, _, held = told[0].partition("; ")
    if held:
        return False, f"host {host}: {held}"
    return True, f"host {host}: the driver is let go of for {lasts}; nvidia-smi can reset its GPUs"
