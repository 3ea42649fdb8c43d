"""`gpu-broker adopt`: a lease for a process that uses a GPU already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_sdk.evidence import ADOPTS
from agent_sdk.settings import read_settings
from broker.attribution.processes import Programs
from broker.cli.complete import hosts_and_devices
from broker.cli.leasing.holding import Hold, in_background
from broker.cli.names import PREFIX, place, target_of
from broker.cli.store import output_option, pool_client
from broker.hold.life import ProcessLife
from broker.text.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk import LeaseClient
    from agent_sdk.request import LeaseOptions
    from agent_sdk.state.devices import DeviceStatus, ProcessStatus

COMMAND = ADOPTS.removeprefix("gpu-broker-")


@click.command()
@click.option("--pid", type=click.IntRange(min=1), required=True, help="The process.")
@click.option("--gpu", help="One of its GPUs, of several.", shell_complete=hosts_and_devices)
@click.option("--memory", type=Size(), default=0, help="8GiB; default what it uses now.")
@click.option("--for", "for_s", type=Duration(), default=0.0, help="Give it back after so long.")
@click.option("--ttl", "ttl_s", type=Duration(), default=30.0, help="As of gpu-broker run (30s).")
@click.option("--note", default="", help="A line for people, shown beside the lease.")
@click.option("--agent", help="The agent that asks; default user@host.")
@output_option()
def adopt(
    pid: int,
    gpu: str | None,
    memory: int,
    for_s: float,
    ttl_s: float,
    note: str,
    agent: str | None,
    output: str,
) -> None:
    """Take a lease for a process of this machine that uses a GPU without one.

    What it uses becomes leased, on its own GPU, and needs no free memory; it is accounted to the
    lease, with its children. A keeper in the background renews the lease while the process lives,
    and gives it back when it ends. The process itself is not touched, and not ended with the lease.

    The process must be your own, or you root, and this host's reporter must see it: gpu-broker
    status lists it with a finding.

    \b
    Examples:
      gpu-broker adopt --pid 4711
      gpu-broker adopt --pid 4711 --memory 12GiB --note 'was started by cron'
      for gpu in gpu-host-3:0 gpu-host-3:1; do gpu-broker adopt --pid 4711 --gpu $gpu; done
    """  # fmt: skip
    life = _own(pid)
    with pool_client() as client:
        device, process = _use_of(client, life, gpu)
    if process.memory_mb is None and not memory:
        raise click.UsageError("its driver does not tell how much it uses: name --memory")
    used_mb = process.memory_mb or 0
    ask: LeaseOptions = {
        "memory": f"{memory or max(1, used_mb)}MiB",
        "host": device.host,
        "uses": f"{device.uuid}={used_mb}",
        "ttl_s": ttl_s,
        "note": note,
        "wait_s": 0.0,
    }
    in_background(Hold(COMMAND, agent, ask, 0.0, for_s, life, adopts=True), output)


def _own(pid: int) -> ProcessLife:
    """Return the life of a process that is ours to adopt."""
    try:
        life, owner = ProcessLife(pid), Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        raise click.BadParameter(f"there is no process {pid}", param_hint="--pid") from None
    if os.geteuid() not in {0, owner}:
        raise click.BadParameter(
            f"process {pid} is of user {owner}: call gpu-broker adopt as that user, or as root",
            param_hint="--pid",
        )
    return life


def _use_of(
    client: LeaseClient, life: ProcessLife, gpu: str | None
) -> tuple[DeviceStatus, ProcessStatus]:
    """Return the GPU that a process uses, by the word of this host's reporter."""
    host = read_settings().hostname
    wanted = None if gpu is None else target_of(client, gpu).name
    devices = client.devices_of(entry.uuid for entry in client.device_list(host))
    used = [
        (device, process)
        for device in devices
        for process in device.processes or ()
        if (process.pid, process.start) in {(life.pid, life.start), (life.pid, 0)}
        and wanted in {None, device.uuid}
    ]
    if not used:
        raise click.UsageError(
            f"no GPU of {host} shows process {life.pid}: it uses none, or the reporter does not "
            f"see it (gpu-broker doctor). gpu-broker acquire --pid {life.pid} takes a new lease"
        )
    leased = _leased(client, host, life, used)
    free = [each for each in used if each[0].uuid not in leased]
    if not free:
        raise click.UsageError(
            f"process {life.pid} is under lease {leased[used[0][0].uuid][:PREFIX]} already"
        )
    if len(free) > 1:
        raise click.UsageError(
            f"process {life.pid} uses {' '.join(place(device) for device, _ in free)}: name one "
            "with --gpu, and call this once for each"
        )
    return free[0]


def _leased(
    client: LeaseClient,
    host: str,
    life: ProcessLife,
    used: Iterable[tuple[DeviceStatus, ProcessStatus]],
) -> dict[str, str]:
    """Return the lease that the process has of each of these GPUs, where it has one.

    The reporter tells of it a moment late; that another `adopt` keeps it is known at once.
    """
    uuids = {device.uuid for device, _ in used}
    lists = client.lease_list(host=host)
    leases = client.leases_of([entry.token for each in lists for entry in each])
    told, system = {process.token for _, process in used}, Programs()
    return {
        uuid: lease.token
        for lease in leases
        if (here := uuids & dict(lease.devices).keys())
        if lease.token in told or system.adopts(lease.pid, lease.token, life.pid, life.process)
        for uuid in here
    }
