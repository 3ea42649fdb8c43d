"""Sentence about a host without devices, in the words of the shell."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from agent_sdk.errors import HostUnknown, LeaseError
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk import LeaseClient


def no_host(asked: str, near: str, hosts: Iterable[str]) -> str:
    """Say which host has no GPUs, which one may have been meant, and the options that help.

    Args:
        asked: the host that was asked for.
        near: the one with GPUs whose name differs by case and domain alone, or empty.
        hosts: all that have GPUs.
    """
    meant = (
        f"; {near} has: --host {near}, or GPU_BROKER_HOSTNAME={near} if that is this machine"
        if near
        else ""
    )
    if not near and (guess := did_you_mean(asked, hosts)):
        meant = f"; {guess}"
    return f"host {asked} has no GPUs in this pool{meant}; --host any takes any"


def look_for(client: LeaseClient, asked: str) -> str:
    """Say the same after a look at the pool's hosts; without the nearest if they cannot be read."""
    hosts: set[str] = set()
    with suppress(LeaseError):
        hosts = {device.host for device in client.devices()}
    return no_host(asked, HostUnknown.among(asked, hosts).near, hosts)
