"""CUDA's numbers of a machine's GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.engines.visible import AMD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.devices.sample import DeviceSample


def numbers_of(devices: Iterable[DeviceSample]) -> dict[str, str]:
    """Return the number by which CUDA knows each GPU in PCI order, where that is certain, by UUID.

    GPUs of AMD are none of CUDA's. One that is lost, divided or not identified may shift the
    numbers of the others.
    """
    there = [d for d in devices if d.listed and not d.uuid.startswith(AMD)]
    whole = all(device.state == "ok" and not device.parent for device in there)
    if not whole or sorted(device.index for device in there) != list(range(len(there))):
        return {}
    return {device.uuid: str(device.index) for device in there}
