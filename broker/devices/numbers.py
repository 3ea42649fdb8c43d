"""CUDA's numbers of a machine's GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent_sdk.engines.visible import AMD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.devices.sample import DeviceSample


def numbered(devices: Iterable[DeviceSample]) -> tuple[DeviceSample, ...]:
    """Give each GPU the number by which CUDA knows it in PCI order, where that is certain.

    GPUs of AMD are none of CUDA's. One that is lost, divided or not identified may shift the
    numbers of the others.
    """
    told = tuple(devices)
    there = [device for device in told if device.listed and not device.uuid.startswith(AMD)]
    whole = all(device.state == "ok" and not device.parent for device in there)
    if not whole or sorted(device.index for device in there) != list(range(len(there))):
        return told
    return tuple(
        replace(device, runtime_id=str(device.index)) if device in there else device
        for device in told
    )
