"""Cgroup of a command whose GPU memory the driver limits."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from agent_sdk.settings import read_settings
from broker.run.cgroups import PREFIX, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from agent_sdk import Lease, LeaseClient
    from broker.run.cgroups import Place
    from broker.run.progress import Progress

WAIT_S: Final = 20.0
"""Most seconds that the command waits for its limit: a reporter looks every few seconds."""

LOOK_S: Final = 0.2

LEFT_S: Final = 0.5
"""Most seconds for which an ended command's cgroup may still count a process."""

NO_CGROUPS: Final = "this system has no cgroup v2"
NOT_OURS: Final = (
    "no cgroup can be made in {where}: start it by systemd-run --user --scope "
    "--unit=gpu-broker-run-NAME, or set GPU_BROKER_CGROUP to a cgroup that is delegated to you"
)
ELSEWHERE: Final = "its GPU is on host {host}, and this is {here}"
NO_ANSWER: Final = "the reporter of {host} has set no limit within {seconds:.0f} s"


class NotLimitedError(Exception):
    """Error of a lease whose memory the driver does not limit; the message has the reason."""


@contextmanager
def limited(client: LeaseClient, lease: Lease, teller: Progress, mode: str) -> Iterator[None]:
    """Live in a cgroup whose memory the driver limits to the lease, while the block lasts.

    `mode`: a word of the policy `memory_limit`.

    Raises:
        NotLimitedError: it is required, and cannot be had.
    """
    if lease.on_cpu or mode == "off":
        yield
        return
    client.keep(lease)  # its host may take longer than the lease lasts
    inside = False
    with _Partition() as partition:
        try:
            partition.enter()
            _await(client, lease)
            inside = True
        except NotLimitedError as error:
            if mode == "required":
                raise
            teller.not_limited(str(error))
        if inside:
            teller.limited(lease)
        yield


class _Partition:
    """Cgroup of our own below the one that we are in, or below a delegated one."""

    def __init__(self) -> None:
        self._before: Place | None = None
        self._made: Path | None = None

    def __enter__(self) -> Self:
        return self

    def enter(self) -> None:
        """Move there with all threads; a systemd scope of the agreed name is one already.

        Raises:
            NotLimitedError: there are no cgroups, or this user may make none.
        """
        own = place_of()
        if own is None:
            raise NotLimitedError(NO_CGROUPS)
        if own.asks:
            return
        chosen = read_settings().cgroup
        parents = [Path(chosen)] if chosen else [own.folder]
        for parent in parents:
            made = parent / f"{PREFIX}{token_hex(8)}.scope"
            with suppress(OSError):
                made.mkdir()
                with suppress(OSError):  # the driver may not need it, or it is on
                    (parent / "cgroup.subtree_control").write_text("+dmem")
                try:
                    _move(made)
                except OSError:
                    made.rmdir()
                    raise
                self._before, self._made = own, made
                return
        raise NotLimitedError(NOT_OURS.format(where=parents[0]))

    def __exit__(self, *_: object) -> None:
        """Move back, and remove it; what still lives there stays limited."""
        if self._before is None or self._made is None:
            return
        with suppress(OSError):
            _move(self._before.folder)
            until = time.monotonic() + LEFT_S
            while True:
                try:
                    self._made.rmdir()
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
                else:
                    return


def _move(cgroup: Path) -> None:
    """Move this process with all its threads."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _await(client: LeaseClient, lease: Lease) -> None:
    """Wait until the driver limits the lease on each of its devices."""
    here = read_settings().hostname
    for granted in lease.devices:
        if granted.host != here:
            raise NotLimitedError(ELSEWHERE.format(host=granted.host, here=here))
    entered_ms, until = client.pool().now_ms, time.monotonic() + WAIT_S
    uuids = {device.uuid for device in lease.devices}
    while True:
        devices = client.devices_of(uuids)
        if devices and all(lease.token in device.limited for device in devices):
            return
        for device in devices:
            if device.limit_error and device.sampled_ms >= entered_ms:
                raise NotLimitedError(device.limit_error)
        if time.monotonic() > until:
            raise NotLimitedError(NO_ANSWER.format(host=here, seconds=WAIT_S))
        time.sleep(LOOK_S)
